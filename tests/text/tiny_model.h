#pragma once

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/text.h"
#include "coordinator/text/utf8.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace quicksilver {

inline std::string Spelling(unsigned char byte) {
  std::string spelling;
  AppendUtf8(AlphabetCharacter(byte), spelling);
  return spelling;
}

inline nlohmann::json Added(int id, const std::string& content, bool special = true) {
  return {{"id", id},        {"content", content}, {"special", special}, {"single_word", false},
          {"lstrip", false}, {"rstrip", false},    {"normalized", false}};
}

/// The 256 bytes (id = byte), the merges "a b" = 256, "ab c" = 257, and the special tokens <s> = 300, </s> = 301,
/// <mask> = 302.
inline nlohmann::json TinyTokenizer() {
  nlohmann::json vocab = nlohmann::json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[Spelling(static_cast<unsigned char>(byte))] = byte;
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  return {{"added_tokens", {Added(300, "<s>"), Added(301, "</s>"), Added(302, "<mask>")}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c"}}}}};
}

/// A model directory that lives as long as this.
class ModelDirectory {
 public:
  ModelDirectory() {
    std::string path = (std::filesystem::temp_directory_path() / "text_test_XXXXXX").string();
    path_ = mkdtemp(path.data());
  }
  ~ModelDirectory() { std::filesystem::remove_all(path_); }
  ModelDirectory(const ModelDirectory&) = delete;
  ModelDirectory& operator=(const ModelDirectory&) = delete;

  ModelDirectory& Write(const std::string& name, const std::string& text) {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
    return *this;
  }
  ModelDirectory& Write(const std::string& name, const nlohmann::json& value) { return Write(name, value.dump()); }

  absl::StatusOr<std::shared_ptr<const TextModel>> Load() const { return TextModel::Load(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// The model of these files; the test fails where it does not load.
inline std::shared_ptr<const TextModel> LoadTiny(const nlohmann::json& tokenizer,
                                                 const nlohmann::json& config = nlohmann::json::object()) {
  ModelDirectory directory;
  directory.Write("tokenizer.json", tokenizer).Write("tokenizer_config.json", config);
  auto model = directory.Load();
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *model : nullptr;
}

}  // namespace quicksilver
