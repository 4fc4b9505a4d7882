#include <openssl/evp.h>

#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/model_file.h"
#include "coordinator/text/text.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tokenizer_json.h"
#include "nlohmann/json.hpp"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kTokenizerBytesMax = 64 << 20;
constexpr size_t kConfigBytesMax = 16 << 20;
struct NamedToken {
  const char* role;
  bool required;  // A model that names one of these uses it; the others are often left over from another model.
};
constexpr NamedToken kNamedTokens[] = {{"bos_token", true},  {"eos_token", true},  {"pad_token", true},
                                       {"mask_token", true}, {"unk_token", false}, {"sep_token", false},
                                       {"cls_token", false}};

absl::Status InFile(const absl::Status& status, const std::string& path) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

std::string Sha256Hex(const std::string& text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr) != 1) return "";
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

// An absent file reads as an empty object.
absl::StatusOr<json> ReadConfig(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadModelFile(path, kConfigBytesMax);
  if (absl::IsNotFound(text.status())) return json::object();
  if (!text.ok()) return text.status();
  absl::StatusOr<json> config = ParseModelJson(*text);
  if (!config.ok()) return InFile(config.status(), path);
  if (!config->is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": the top level is not an object"));
  return config;
}

// "bos_token" is a text, an object with the text as "content", or null.
std::optional<std::string> TokenText(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return std::nullopt;
}

absl::Status AddDecoderTokens(const json& config, TokenHints& hints) {
  const auto entries = config.find("added_tokens_decoder");
  if (entries == config.end() || entries->is_null()) return absl::OkStatus();
  if (!entries->is_object()) return absl::InvalidArgumentError("added_tokens_decoder is not an object");
  for (const auto& [key, entry] : entries->items()) {
    ASSIGN_OR_RETURN(AddedToken token, ParseAddedToken(entry));
    if (!absl::SimpleAtoi(key, &token.id) || token.id < 0 || token.id >= kTokenIdsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("added_tokens_decoder: id \"", key, "\" is not in [0, ", kTokenIdsMax, ")"));
    }
    hints.added.push_back(std::move(token));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenHints> HintsOfTokenizerConfig(const json& config) {
  TokenHints hints;
  RETURN_IF_ERROR(AddDecoderTokens(config, hints));
  for (const auto& [role, required] : kNamedTokens) {
    const std::optional<std::string> token = TokenText(config.value(role, json()));
    if (token.has_value() && !token->empty()) hints.special_names.push_back({role, *token, required});
  }
  const json additional = config.value("additional_special_tokens", json::array());
  if (!additional.is_array()) return hints;
  for (const json& entry : additional) {
    const std::optional<std::string> token = TokenText(entry);
    if (token.has_value() && !token->empty())
      hints.special_names.push_back({"additional_special_tokens", *token, false});
  }
  return hints;
}

// The model's own control ids, whatever the tokenizer's files call them.
void AddModelIds(const json& config, TokenHints& hints) {
  for (const char* name : {"mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"}) {
    const json value = config.value(name, json());
    for (const json& id : value.is_array() ? value : json::array({value})) {
      if (id.is_number_integer() && id >= 0 && id < kTokenIdsMax) hints.special_ids.push_back(id.get<int32_t>());
    }
  }
}

// The source, or none where the model has no template.
absl::StatusOr<std::optional<std::string>> TemplateSource(const json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array()) return absl::InvalidArgumentError("chat_template is neither a text nor a list");
  for (const json& entry : *found) {
    if (!entry.is_object() || !entry.contains("name") || !entry.contains("template")) continue;
    if (entry["name"] == "default" && entry["template"].is_string()) return entry["template"].get<std::string>();
  }
  return absl::InvalidArgumentError("chat_template is a list without one named \"default\"");
}

absl::StatusOr<std::optional<ChatTemplate>> LoadTemplate(const std::string& directory, const json& config) {
  const std::string config_path = directory + "/tokenizer_config.json";
  std::string path = directory + "/chat_template.jinja";
  std::optional<std::string> source;
  absl::StatusOr<std::string> file = ReadModelFile(path, kConfigBytesMax);
  if (file.ok()) {
    source = *std::move(file);
  } else if (!absl::IsNotFound(file.status())) {
    return file.status();
  } else {
    path = config_path;
    absl::StatusOr<std::optional<std::string>> own = TemplateSource(config);
    if (!own.ok()) return InFile(own.status(), path);
    source = *std::move(own);
  }
  if (!source.has_value()) return std::nullopt;
  std::vector<std::pair<std::string, std::string>> variables;
  for (const auto& [role, required] : kNamedTokens) {
    std::optional<std::string> token = TokenText(config.value(role, json()));
    if (token.has_value()) variables.emplace_back(role, *std::move(token));
  }
  absl::StatusOr<ChatTemplate> chat_template = ChatTemplate::Parse(*source, std::move(variables));
  if (!chat_template.ok()) {
    return InFile(chat_template.status(), path == config_path ? path + ": chat_template" : path);
  }
  return *std::move(chat_template);
}

class HfTextModel : public TextModel {
 public:
  HfTextModel(Tokenizer tokenizer, std::optional<ChatTemplate> chat_template, std::string digest)
      : tokenizer_(std::move(tokenizer)), chat_template_(std::move(chat_template)), digest_(std::move(digest)) {}

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, size_t ids_max) const override {
    return tokenizer_.EncodeContent(text, ids_max);
  }

  absl::StatusOr<std::vector<int32_t>> EncodeChat(const std::vector<TemplateMessage>& messages,
                                                  size_t ids_max) const override {
    if (!chat_template_.has_value()) return absl::InvalidArgumentError("the model has no chat template");
    size_t bytes = 0;
    for (const TemplateMessage& message : messages) bytes += message.content.size();
    RETURN_IF_ERROR(tokenizer_.CheckSize(bytes, ids_max));
    ASSIGN_OR_RETURN(const MarkedText text, chat_template_->Render(messages));
    return tokenizer_.Encode(text, ids_max);
  }

  std::string_view TokenBytes(int32_t id) const override { return tokenizer_.TokenBytes(id); }
  bool IsSpecial(int32_t id) const override { return tokenizer_.IsSpecial(id); }
  int32_t size() const override { return tokenizer_.size(); }
  int32_t FindSpecial(std::string_view token) const override { return tokenizer_.FindSpecial(token); }
  const std::string& digest() const override { return digest_; }

 private:
  const Tokenizer tokenizer_;
  const std::optional<ChatTemplate> chat_template_;
  const std::string digest_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const TextModel>> TextModel::Load(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json";
  ASSIGN_OR_RETURN(const std::string text, ReadModelFile(path, kTokenizerBytesMax));
  const absl::StatusOr<json> spec = ParseModelJson(text);
  if (!spec.ok()) return InFile(spec.status(), path);
  const std::string config_path = directory + "/tokenizer_config.json";
  ASSIGN_OR_RETURN(const json config, ReadConfig(config_path));
  ASSIGN_OR_RETURN(const json model_config, ReadConfig(directory + "/config.json"));
  absl::StatusOr<TokenHints> hints = HintsOfTokenizerConfig(config);
  if (!hints.ok()) return InFile(hints.status(), config_path);
  AddModelIds(model_config, *hints);
  absl::StatusOr<Tokenizer> tokenizer = ParseTokenizer(*spec, *hints);
  if (!tokenizer.ok()) return InFile(tokenizer.status(), path);
  ASSIGN_OR_RETURN(std::optional<ChatTemplate> chat_template, LoadTemplate(directory, config));
  return std::make_shared<const HfTextModel>(*std::move(tokenizer), std::move(chat_template), Sha256Hex(text));
}

}  // namespace quicksilver
