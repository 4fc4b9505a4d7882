#include "coordinator/text/tokenizer_json.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/text/byte_alphabet.h"
#include "coordinator/text/utf8.h"
#include "nlohmann/json.hpp"

namespace quicksilver {
namespace {

using nlohmann::json;

constexpr size_t kTokenBytesMax = 16 << 10;
constexpr int kDecoderDepthMax = 8;

absl::Status Bad(const std::string& why) { return absl::InvalidArgumentError(why); }

std::string Quoted(const std::string& text) { return json(text).dump(-1, ' ', false, json::error_handler_t::replace); }

absl::StatusOr<int32_t> ParseId(const json& value, const std::string& token) {
  if (!value.is_number_integer() || value < 0 || value >= kTokenIdsMax) {
    return Bad(absl::StrCat("token ", Quoted(token), ": id ", value.dump(), " is not in [0, ", kTokenIdsMax, ")"));
  }
  return value.get<int32_t>();
}

// Tokens by id and by spelling, from the vocabulary and the added tokens together.
class Vocabulary {
 public:
  absl::Status Add(const std::string& token, int32_t id) {
    if (token.empty()) return Bad(absl::StrCat("token ", id, " is empty"));
    if (token.size() > kTokenBytesMax) {
      return Bad(absl::StrCat("token ", id, " has ", token.size(), " bytes, more than ", kTokenBytesMax));
    }
    const auto [entry, added] = ids_.emplace(token, id);
    if (!added) {
      if (entry->second == id) return absl::OkStatus();
      return Bad(absl::StrCat("token ", Quoted(token), " has two ids, ", entry->second, " and ", id));
    }
    if (id >= size()) tokens_.resize(id + 1);
    if (!tokens_[id].empty()) {
      return Bad(absl::StrCat("id ", id, " stands for two tokens, ", Quoted(tokens_[id]), " and ", Quoted(token)));
    }
    tokens_[id] = token;
    return absl::OkStatus();
  }

  int32_t Find(const std::string& token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  }
  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }
  const std::string& token(int32_t id) const { return tokens_[id]; }  // Empty: no such token.

 private:
  absl::flat_hash_map<std::string, int32_t> ids_;
  std::vector<std::string> tokens_;
};

bool IsOff(const json& model, const char* option) {
  const auto found = model.find(option);
  return found == model.end() || found->is_null() || *found == false || *found == "" || *found == 0;
}

absl::Status CheckModel(const json& spec) {
  if (!spec.is_object()) return Bad("the top level is not an object");
  const auto model = spec.find("model");
  if (model == spec.end() || !model->is_object()) return Bad("it has no model");
  const json type = model->value("type", json());
  if (type != "BPE") return Bad(absl::StrCat("model type ", type.dump(), " is not supported, only \"BPE\""));
  for (const char* option : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    if (!IsOff(*model, option)) {
      return Bad(absl::StrCat("model option ", option, " = ", (*model)[option].dump(), " is not supported"));
    }
  }
  if (!model->contains("vocab") || !(*model)["vocab"].is_object()) return Bad("the model has no vocab");
  if (!model->contains("merges") || !(*model)["merges"].is_array()) return Bad("the model has no merges");
  return absl::OkStatus();
}

absl::Status CheckDecoder(const json& spec, int depth) {
  const json type = spec.is_object() ? spec.value("type", json()) : json();
  if (type == "ByteLevel" || type == "Fuse") return absl::OkStatus();
  if (type == "Sequence" && depth < kDecoderDepthMax && spec.contains("decoders") && spec["decoders"].is_array()) {
    for (const json& part : spec["decoders"]) RETURN_IF_ERROR(CheckDecoder(part, depth + 1));
    return absl::OkStatus();
  }
  return Bad(absl::StrCat("decoder type ", type.dump(), " is not supported"));
}

absl::Status AddVocab(const json& model, Vocabulary& vocabulary) {
  for (const auto& [token, value] : model["vocab"].items()) {
    ASSIGN_OR_RETURN(const int32_t id, ParseId(value, token));
    RETURN_IF_ERROR(vocabulary.Add(token, id));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<AddedToken>> ParseAddedTokens(const json& spec) {
  std::vector<AddedToken> added;
  const json list = spec.value("added_tokens", json::array());
  if (list.is_null()) return added;
  if (!list.is_array()) return Bad("added_tokens is not a list");
  for (const json& entry : list) {
    ASSIGN_OR_RETURN(AddedToken token, ParseAddedToken(entry));
    ASSIGN_OR_RETURN(token.id, ParseId(entry.value("id", json()), token.content));
    added.push_back(std::move(token));
  }
  return added;
}

// All added tokens, each id once; special wherever any file says so.
absl::StatusOr<std::vector<AddedToken>> GatherAdded(std::vector<AddedToken> own, const TokenHints& hints,
                                                    Vocabulary& vocabulary) {
  absl::flat_hash_map<int32_t, AddedToken> by_id;
  for (const std::vector<AddedToken>& list : {std::move(own), hints.added}) {
    for (const AddedToken& token : list) {
      RETURN_IF_ERROR(vocabulary.Add(token.content, token.id));
      AddedToken& kept = by_id.emplace(token.id, token).first->second;
      kept.special = kept.special || token.special;
    }
  }
  const auto make_special = [&](int32_t id) {
    by_id.emplace(id, AddedToken{.id = id, .content = vocabulary.token(id)}).first->second.special = true;
  };
  for (const TokenHints::Named& name : hints.special_names) {
    const int32_t id = vocabulary.Find(name.content);
    if (id < 0 && name.required) {
      return Bad(absl::StrCat(name.role, " ", Quoted(name.content), " is not in the vocabulary"));
    }
    if (id >= 0) make_special(id);
  }
  for (const int32_t id : hints.special_ids) {
    if (id >= 0 && id < vocabulary.size() && !vocabulary.token(id).empty()) make_special(id);
  }
  std::vector<AddedToken> added;
  for (const auto& [id, token] : by_id) added.push_back(token);
  std::sort(added.begin(), added.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return added;
}

bool CanBeInUtf8(int byte) { return byte != 0xC0 && byte != 0xC1 && byte < 0xF5; }

absl::Status FillByteIds(const Vocabulary& vocabulary, const std::vector<bool>& special, Bpe::Tables& tables) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string spelling;
    AppendUtf8(AlphabetCharacter(static_cast<unsigned char>(byte)), spelling);
    const int32_t id = vocabulary.Find(spelling);
    tables.byte_ids[byte] = id;
    if (id < 0 && CanBeInUtf8(byte)) {
      return Bad(absl::StrCat("the vocabulary lacks byte ", byte, ", written ", Quoted(spelling)));
    }
    if (id >= 0 && special[id]) return Bad(absl::StrCat("token ", Quoted(spelling), " is special and also a byte"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::pair<std::string, std::string>> ParseMerge(const json& merge, size_t index) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return std::pair(merge[0].get<std::string>(), merge[1].get<std::string>());
  }
  if (merge.is_string()) {
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return Bad(absl::StrCat("merge ", index, ", ", merge.dump(), ", is not a pair of tokens"));
}

absl::Status FillMerges(const json& merges, const Vocabulary& vocabulary, const std::vector<bool>& special,
                        Bpe::Tables& tables) {
  tables.merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    ASSIGN_OR_RETURN(const auto pair, ParseMerge(merges[i], i));
    const std::string joined = pair.first + pair.second;
    for (const std::string& token : {pair.first, pair.second, joined}) {
      if (vocabulary.Find(token) < 0) {
        return Bad(absl::StrCat("merge ", i, ", ", merges[i].dump(), ", names unknown token ", Quoted(token)));
      }
    }
    const Bpe::Merge merge{vocabulary.Find(pair.first), vocabulary.Find(pair.second), vocabulary.Find(joined)};
    // A special token must not come out of text, even where the merges spell it.
    if (special[merge.joined]) continue;
    tables.token_bytes_max = std::max(tables.token_bytes_max, joined.size());
    tables.merges.push_back(merge);
  }
  return absl::OkStatus();
}

absl::Status FillWholeWords(const json& model, const std::vector<bool>& special, Bpe::Tables& tables) {
  const json ignore_merges = model.value("ignore_merges", json(false));
  if (!ignore_merges.is_boolean()) return Bad("model option ignore_merges is not a boolean");
  if (!ignore_merges.get<bool>()) return absl::OkStatus();
  for (const auto& [token, id] : model["vocab"].items()) {
    const std::optional<std::string> bytes = BytesOfEntry(token);
    if (!bytes.has_value() || special[id.get<int32_t>()]) continue;
    tables.token_bytes_max = std::max(tables.token_bytes_max, bytes->size());
    tables.whole_words.emplace(*bytes, id.get<int32_t>());
  }
  return absl::OkStatus();
}

std::vector<std::string> BytesById(const Vocabulary& vocabulary, const std::vector<AddedToken>& added) {
  std::vector<std::string> bytes(vocabulary.size());
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    bytes[id] = BytesOfEntry(vocabulary.token(id)).value_or(vocabulary.token(id));
  }
  for (const AddedToken& token : added) bytes[token.id] = token.special ? "" : token.content;
  return bytes;
}

}  // namespace

absl::StatusOr<AddedToken> ParseAddedToken(const json& spec) {
  if (!spec.is_object() || !spec.contains("content") || !spec["content"].is_string()) {
    return Bad("an added token has no content");
  }
  AddedToken token{.content = spec["content"].get<std::string>()};
  if (token.content.empty()) return Bad("an added token is empty");
  const std::pair<const char*, bool*> flags[] = {{"special", &token.special},
                                                 {"single_word", &token.single_word},
                                                 {"lstrip", &token.lstrip},
                                                 {"rstrip", &token.rstrip},
                                                 {"normalized", &token.normalized}};
  for (const auto& [name, flag] : flags) {
    const json value = spec.value(name, json(false));
    if (!value.is_boolean()) return Bad(absl::StrCat("token ", Quoted(token.content), ": ", name, " is not a boolean"));
    *flag = value.get<bool>();
  }
  return token;
}

absl::StatusOr<Tokenizer> ParseTokenizer(const json& spec, const TokenHints& hints) {
  RETURN_IF_ERROR(CheckModel(spec));
  RETURN_IF_ERROR(CheckDecoder(spec.value("decoder", json()), 0));
  const json& model = spec["model"];
  Tokenizer::Parts parts;
  ASSIGN_OR_RETURN(parts.normalizer, Normalizer::Parse(spec.value("normalizer", json())));
  ASSIGN_OR_RETURN(parts.pre_tokenizer, PreTokenizer::Parse(spec.value("pre_tokenizer", json())));
  Vocabulary vocabulary;
  RETURN_IF_ERROR(AddVocab(model, vocabulary));
  ASSIGN_OR_RETURN(std::vector<AddedToken> own, ParseAddedTokens(spec));
  ASSIGN_OR_RETURN(parts.added, GatherAdded(std::move(own), hints, vocabulary));
  std::vector<bool> special(vocabulary.size(), false);
  for (const AddedToken& token : parts.added) special[token.id] = token.special;
  RETURN_IF_ERROR(FillByteIds(vocabulary, special, parts.bpe));
  RETURN_IF_ERROR(FillMerges(model["merges"], vocabulary, special, parts.bpe));
  RETURN_IF_ERROR(FillWholeWords(model, special, parts.bpe));
  parts.token_bytes = BytesById(vocabulary, parts.added);
  return Tokenizer(std::move(parts));
}

}  // namespace quicksilver
