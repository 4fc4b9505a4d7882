#include "coordinator/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/text/utf8.h"

namespace quicksilver {
namespace {

// How much shorter normalization can make a text: three jamo of three bytes become one syllable of three, a
// mathematical letter of four bytes an ASCII one. Twice that, for safety.
constexpr size_t kNormalizationShrinkMax = 8;

}  // namespace

struct Tokenizer::Run {
  size_t ids_max;
  std::vector<int32_t> ids;
  RegexScratch regex;
  Bpe::Scratch bpe;

  absl::Status Push(int32_t id) {
    if (ids.size() >= ids_max) return TooManyIds(ids_max);
    ids.push_back(id);
    return absl::OkStatus();
  }
};

Tokenizer::Tokenizer(Parts parts)
    : normalizer_(std::move(parts.normalizer)),
      pre_tokenizer_(std::move(parts.pre_tokenizer)),
      bpe_(std::move(parts.bpe)),
      token_bytes_(std::move(parts.token_bytes)),
      is_special_(token_bytes_.size(), false) {
  size_t token_bytes_max = bpe_.token_bytes_max();
  bool drops_text = pre_tokenizer_.removes_text();
  for (const AddedToken& token : parts.added) {
    token_bytes_max = std::max(token_bytes_max, token.content.size());
    drops_text = drops_text || token.lstrip || token.rstrip;
    if (token.special) {
      is_special_[token.id] = true;
      special_ids_[token.content] = token.id;
    }
    // Special tokens are the template's, spelled as they are.
    if (token.special || !token.normalized) {
      raw_finder_.Add(token, token.content);
      continue;
    }
    std::string storage;
    const absl::StatusOr<std::string_view> form = normalizer_.Apply(token.content, storage);
    if (form.ok()) token_bytes_[token.id] = std::string(*form);
    normalized_finder_.Add(token, token_bytes_[token.id]);
  }
  const size_t shrink_max = normalizer_.empty() ? 1 : kNormalizationShrinkMax;
  if (!drops_text) bytes_per_id_max_ = shrink_max * token_bytes_max;
}

absl::Status Tokenizer::CheckSize(size_t text_bytes, size_t ids_max) const {
  if (bytes_per_id_max_ > 0 && text_bytes / bytes_per_id_max_ > ids_max) return TooManyIds(ids_max);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeContent(std::string_view text, size_t ids_max) const {
  RETURN_IF_ERROR(CheckSize(text.size(), ids_max));
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("the text is not valid UTF-8");
  Run run{.ids_max = ids_max};
  RETURN_IF_ERROR(EncodeOrdinary(text, run));
  return std::move(run.ids);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(const MarkedText& marked, size_t ids_max) const {
  const std::string_view text = marked.text();
  RETURN_IF_ERROR(CheckSize(text.size(), ids_max));
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("the text is not valid UTF-8");
  std::vector<AddedTokenFinder::Match> matches;
  for (const MarkedText::Range& literal : marked.LiteralRanges()) {
    raw_finder_.FindIn(text, literal.begin, literal.end, AddedTokenFinder::Want::kSpecial, matches);
  }
  Run run{.ids_max = ids_max};
  size_t at = 0;
  for (const AddedTokenFinder::Match& match : matches) {
    if (at < match.begin) RETURN_IF_ERROR(EncodeOrdinary(text.substr(at, match.begin - at), run));
    RETURN_IF_ERROR(run.Push(match.id));
    at = match.end;
  }
  RETURN_IF_ERROR(EncodeOrdinary(text.substr(at), run));
  return std::move(run.ids);
}

absl::Status Tokenizer::EncodeOrdinary(std::string_view text, Run& run) const {
  std::vector<AddedTokenFinder::Match> matches;
  raw_finder_.FindIn(text, 0, text.size(), AddedTokenFinder::Want::kOrdinary, matches);
  size_t at = 0;
  for (const AddedTokenFinder::Match& match : matches) {
    if (at < match.begin) RETURN_IF_ERROR(EncodeNormalized(text.substr(at, match.begin - at), run));
    RETURN_IF_ERROR(run.Push(match.id));
    at = match.end;
  }
  return EncodeNormalized(text.substr(at), run);
}

absl::Status Tokenizer::EncodeNormalized(std::string_view raw, Run& run) const {
  if (raw.empty()) return absl::OkStatus();
  std::string storage;
  ASSIGN_OR_RETURN(const std::string_view text, normalizer_.Apply(raw, storage));
  std::vector<AddedTokenFinder::Match> matches;
  normalized_finder_.FindIn(text, 0, text.size(), AddedTokenFinder::Want::kOrdinary, matches);
  size_t at = 0;
  for (const AddedTokenFinder::Match& match : matches) {
    if (at < match.begin) RETURN_IF_ERROR(EncodeWords(text.substr(at, match.begin - at), run));
    RETURN_IF_ERROR(run.Push(match.id));
    at = match.end;
  }
  return EncodeWords(text.substr(at), run);
}

absl::Status Tokenizer::EncodeWords(std::string_view text, Run& run) const {
  return pre_tokenizer_.ForEachWord(
      text, run.regex, [&](std::string_view word) { return bpe_.Encode(word, run.ids_max, run.bpe, run.ids); });
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  return id >= 0 && id < size() ? std::string_view(token_bytes_[id]) : std::string_view();
}

bool Tokenizer::IsSpecial(int32_t id) const { return id >= 0 && id < size() && is_special_[id]; }

int32_t Tokenizer::FindSpecial(std::string_view token) const {
  const auto found = special_ids_.find(absl::string_view(token.data(), token.size()));
  return found == special_ids_.end() ? -1 : found->second;
}

}  // namespace quicksilver
