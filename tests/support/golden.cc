#include "tests/support/golden.h"

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/checkpoint/file.h"

namespace quicksilver {
namespace {

constexpr uint64_t kFileBytesMax = 64 << 20;

}  // namespace

absl::StatusOr<Golden> Golden::Open() {
  const char* set = std::getenv("QUICKSILVER_GOLDEN");
  return OpenAt(set != nullptr ? set : QUICKSILVER_ROOT "/../shared/golden");
}

absl::StatusOr<Golden> Golden::OpenAt(const std::string& directory) {
  Golden golden;
  golden.directory_ = directory;
  absl::StatusOr<std::string> manifest =
      ReadSmallFile(absl::StrCat(golden.directory_, "/manifest.json"), kFileBytesMax);
  if (!manifest.ok()) {
    return absl::NotFoundError(absl::StrCat("no golden recordings: ", manifest.status().message(),
                                            "; set QUICKSILVER_GOLDEN to a directory that has them"));
  }
  golden.manifest_ = std::move(manifest).value();
  return golden;
}

std::vector<std::pair<std::string, std::string>> Golden::Checkpoints() const {
  std::vector<std::pair<std::string, std::string>> found;
  const nlohmann::json manifest = nlohmann::json::parse(manifest_);
  for (const nlohmann::json& entry : manifest.at("checkpoints"))
    found.emplace_back(entry.at("family"), entry.at("dtype"));
  return found;
}

absl::StatusOr<std::string> Golden::CheckpointDirectory(const std::string& family, const std::string& dtype) const {
  const nlohmann::json manifest = nlohmann::json::parse(manifest_);
  for (const nlohmann::json& entry : manifest.at("checkpoints")) {
    if (entry.at("family") == family && entry.at("dtype") == dtype) {
      return absl::StrCat(directory_, "/", entry.at("dir").get<std::string>());
    }
  }
  return absl::NotFoundError(absl::StrCat(directory_, ": no checkpoint of ", family, " in ", dtype));
}

absl::StatusOr<HostRows> Golden::ReadRows(const std::string& file, int64_t rows, int64_t cols) const {
  const std::string path = absl::StrCat(directory_, "/", file);
  ASSIGN_OR_RETURN(const File opened, File::Open(path));
  HostRows read{cols, std::vector<float>(rows * cols)};
  if (opened.size() != read.values.size() * sizeof(float)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected ", read.values.size() * sizeof(float), " bytes, found ", opened.size()));
  }
  RETURN_IF_ERROR(opened.ReadAt(0, opened.size(), read.values.data()));
  return read;
}

absl::StatusOr<std::vector<GoldenForward>> Golden::Forwards(const std::string& family) const {
  std::vector<GoldenForward> forwards;
  const nlohmann::json manifest = nlohmann::json::parse(manifest_);
  for (const nlohmann::json& entry : manifest.at("forward")) {
    if (entry.at("family") != family || !entry.contains("input_ids")) continue;
    GoldenForward& forward = forwards.emplace_back();
    forward.family = family;
    forward.name = entry.at("case");
    forward.ids = entry.at("input_ids").get<std::vector<TokenId>>();
    if (entry.at("attention") == "block_causal") forward.block_length = entry.at("block_length");
    if (entry.at("attention") == "causal") forward.block_length = 1;
    const auto shape = entry.at("logits_shape").get<std::vector<int64_t>>();
    ASSIGN_OR_RETURN(forward.logits, ReadRows(entry.at("logits"), shape[0], shape[1]));
    forward.bf16_mean_error = entry.at("reference_bf16_compute").at("mean_abs");
    for (const nlohmann::json& hidden : entry.value("hidden", nlohmann::json::array())) {
      const auto hidden_shape = hidden.at("shape").get<std::vector<int64_t>>();
      ASSIGN_OR_RETURN(HostRows rows, ReadRows(hidden.at("file"), hidden_shape[0], hidden_shape[1]));
      forward.hidden.emplace_back(hidden.at("name"), std::move(rows));
    }
  }
  if (!forwards.empty()) return forwards;
  return absl::NotFoundError(absl::StrCat(directory_, ": no forward passes of ", family));
}

}  // namespace quicksilver
