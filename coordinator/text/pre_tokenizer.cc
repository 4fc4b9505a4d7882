#include "coordinator/text/pre_tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace quicksilver {
namespace {

constexpr int kSequenceDepthMax = 8;
constexpr size_t kStagesMax = 32;
constexpr char kGpt2Pattern[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::StatusOr<bool> Flag(const nlohmann::json& spec, const char* name, bool otherwise) {
  const auto found = spec.find(name);
  if (found == spec.end()) return otherwise;
  if (!found->is_boolean())
    return absl::InvalidArgumentError(absl::StrCat("pre_tokenizer ", name, " is not a boolean"));
  return found->get<bool>();
}

// Joins pieces that lie side by side in the text and hands on the result one piece late.
class Joiner {
 public:
  explicit Joiner(PreTokenizer::Visit visit) : visit_(visit) {}

  void Extend(std::string_view piece) {
    pending_ = pending_.empty() ? piece : std::string_view(pending_.data(), pending_.size() + piece.size());
  }
  absl::Status Flush() {
    const std::string_view piece = std::exchange(pending_, {});
    return piece.empty() ? absl::OkStatus() : visit_(piece);
  }

 private:
  PreTokenizer::Visit visit_;
  std::string_view pending_;
};

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const nlohmann::json& spec) {
  PreTokenizer pre_tokenizer;
  RETURN_IF_ERROR(pre_tokenizer.Add(spec, 0));
  if (!pre_tokenizer.byte_level_) {
    return absl::InvalidArgumentError("pre_tokenizer has no ByteLevel; only byte-level vocabularies are supported");
  }
  return pre_tokenizer;
}

absl::Status PreTokenizer::Add(const nlohmann::json& spec, int depth) {
  if (spec.is_null()) return absl::OkStatus();
  if (!spec.is_object() || !spec.contains("type") || !spec["type"].is_string()) {
    return absl::InvalidArgumentError("pre_tokenizer has no type");
  }
  const auto& type = spec["type"].get_ref<const std::string&>();
  if (type == "Sequence") {
    if (depth == kSequenceDepthMax) return absl::InvalidArgumentError("pre_tokenizer sequences are nested too deep");
    if (!spec.contains("pretokenizers") || !spec["pretokenizers"].is_array()) {
      return absl::InvalidArgumentError("pre_tokenizer Sequence has no list of pretokenizers");
    }
    for (const auto& part : spec["pretokenizers"]) RETURN_IF_ERROR(Add(part, depth + 1));
    return absl::OkStatus();
  }
  // Behind ByteLevel a stage would see the byte alphabet, not the text.
  if (byte_level_) return absl::InvalidArgumentError(absl::StrCat("pre_tokenizer ", type, " follows ByteLevel"));
  if (stages_.size() == kStagesMax) return absl::InvalidArgumentError("too many pre_tokenizers");
  if (type == "Split") return AddSplit(spec);
  if (type == "Digits") return AddDigits(spec);
  if (type == "ByteLevel") return AddByteLevel(spec);
  return absl::InvalidArgumentError(absl::StrCat("pre_tokenizer type ", type, " is not supported"));
}

absl::Status PreTokenizer::AddSplit(const nlohmann::json& spec) {
  const nlohmann::json pattern = spec.value("pattern", nlohmann::json());
  const bool is_regex = pattern.is_object() && pattern.contains("Regex") && pattern["Regex"].is_string();
  const bool is_string = pattern.is_object() && pattern.contains("String") && pattern["String"].is_string();
  if (is_regex == is_string) return absl::InvalidArgumentError("pre_tokenizer Split has no Regex or String pattern");
  const auto& text = pattern[is_regex ? "Regex" : "String"].get_ref<const std::string&>();
  ASSIGN_OR_RETURN(Regex regex, is_regex ? Regex::Compile(text) : Regex::Literal(text));

  const nlohmann::json name = spec.value("behavior", nlohmann::json());
  Stage stage{.regex = std::move(regex)};
  if (name == "Isolated") {
    stage.behavior = Behavior::kIsolated;
  } else if (name == "Removed") {
    stage.behavior = Behavior::kRemoved;
    removes_text_ = true;
  } else if (name == "MergedWithPrevious") {
    stage.behavior = Behavior::kMergedWithPrevious;
  } else if (name == "MergedWithNext") {
    stage.behavior = Behavior::kMergedWithNext;
  } else if (name == "Contiguous") {
    stage.behavior = Behavior::kContiguous;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("pre_tokenizer Split behavior ", name.dump(), " is not supported"));
  }
  ASSIGN_OR_RETURN(stage.invert, Flag(spec, "invert", false));
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddDigits(const nlohmann::json& spec) {
  ASSIGN_OR_RETURN(const bool individual, Flag(spec, "individual_digits", false));
  ASSIGN_OR_RETURN(Regex regex, Regex::Compile("\\p{N}"));
  stages_.push_back({.regex = std::move(regex), .behavior = individual ? Behavior::kIsolated : Behavior::kContiguous});
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddByteLevel(const nlohmann::json& spec) {
  Stage stage;
  ASSIGN_OR_RETURN(stage.add_prefix_space, Flag(spec, "add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, Flag(spec, "use_regex", true));
  if (use_regex) {
    ASSIGN_OR_RETURN(stage.regex, Regex::Compile(kGpt2Pattern));
  }
  stages_.push_back(std::move(stage));
  byte_level_ = true;
  return absl::OkStatus();
}

absl::Status PreTokenizer::ForEachWord(std::string_view text, RegexScratch& scratch, Visit visit) const {
  return text.empty() ? absl::OkStatus() : RunStage(0, text, scratch, visit);
}

absl::Status PreTokenizer::RunStage(size_t stage, std::string_view text, RegexScratch& scratch, Visit visit) const {
  if (stage == stages_.size()) return visit(text);
  std::string prefixed;
  if (stages_[stage].add_prefix_space && text.front() != ' ') {
    prefixed = std::string(" ").append(text);
    text = prefixed;
  }
  if (!stages_[stage].regex.has_value()) return RunStage(stage + 1, text, scratch, visit);
  return SplitBy(stages_[stage], text, scratch,
                 [&](std::string_view piece) { return RunStage(stage + 1, piece, scratch, visit); });
}

absl::Status PreTokenizer::SplitBy(const Stage& stage, std::string_view text, RegexScratch& scratch, Visit visit) {
  Joiner joiner(visit);
  bool first = true;
  bool previous_match = false;
  const auto take = [&](std::string_view piece, bool found) -> absl::Status {
    const bool is_match = found != stage.invert;
    bool joins = false;
    switch (stage.behavior) {
      case Behavior::kIsolated:
        return visit(piece);
      case Behavior::kRemoved:
        return is_match ? absl::OkStatus() : visit(piece);
      case Behavior::kMergedWithPrevious:
        joins = is_match && !previous_match;
        break;
      case Behavior::kMergedWithNext:
        joins = !is_match && previous_match;
        break;
      case Behavior::kContiguous:
        joins = !first && is_match == previous_match;
        break;
    }
    first = false;
    previous_match = is_match;
    if (!joins) RETURN_IF_ERROR(joiner.Flush());
    joiner.Extend(piece);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(stage.regex->ForEachPiece(text, scratch, take));
  return joiner.Flush();
}

}  // namespace quicksilver
