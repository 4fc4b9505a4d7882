#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "worker/decoding/sequence.h"

// What of the answer is there from the beginning.

namespace quicksilver {
namespace {

absl::Status Refuse(const std::string& field, int64_t value, const std::string& bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " (", value, ") must be ", bound));
}

int32_t Size(const std::vector<TokenId>& tokens) { return static_cast<int32_t>(tokens.size()); }

int32_t AnswerEndFor(const SequenceSpec& spec, int32_t tokens) {
  const int32_t prompt = Size(spec.prompt);
  // Nothing stands between the answer and what follows it.
  if (!spec.suffix.empty()) return prompt + tokens;
  return CanvasLength(spec.grid, prompt, tokens, spec.decoding.block_length, spec.positions_max);
}

TokenId At(const std::vector<TokenId>& tokens, int32_t i) {
  return i < Size(tokens) ? tokens[static_cast<size_t>(i)] : -1;
}

}  // namespace

int32_t AnswerEndAtFirst(const SequenceSpec& spec) {
  int32_t initial = spec.decoding.initial_length;
  if (initial == 0) return AnswerEndFor(spec, spec.tokens_max);
  // All that is fixed has its place, and something is left to be decided.
  for (int32_t i = 0; i < Size(spec.fixed); ++i) {
    if (At(spec.fixed, i) >= 0) initial = std::max(initial, i + 2);
  }
  return AnswerEndFor(spec, std::min(initial, spec.tokens_max));
}

int32_t AnswerEndMax(const SequenceSpec& spec) { return AnswerEndFor(spec, spec.tokens_max); }

ProcedureContext ContextOf(const SequenceSpec& spec) {
  ProcedureContext context;
  context.sampling = spec.sampling;
  context.grid = spec.grid;
  context.answer_length = AnswerEndAtFirst(spec) - Size(spec.prompt);
  context.answer_length_max = AnswerEndMax(spec) - Size(spec.prompt);
  context.draft = spec.draft;
  return context;
}

absl::Status CheckInfill(const SequenceSpec& spec) {
  if (!spec.suffix.empty() && spec.grid != BlockGrid::kAfterPrompt) {
    return Refuse("suffix_ids", Size(spec.suffix), "empty: the model does not see what follows");
  }
  if (!spec.fixed.empty() && spec.grid == BlockGrid::kAbsolute) {
    return Refuse("fixed_ids", Size(spec.fixed), "empty: the model does not see what follows");
  }
  const int32_t positions = Size(spec.prompt) + spec.tokens_max + Size(spec.suffix);
  if (positions > spec.positions_max) {
    return Refuse("suffix_ids", Size(spec.suffix),
                  absl::StrCat("so long that the model has positions for it, prompt_ids and max_tokens: ", positions,
                               " of ", spec.positions_max));
  }
  for (const auto& [field, tokens] : {std::pair{"fixed_ids", &spec.fixed}, std::pair{"draft_ids", &spec.draft}}) {
    if (Size(*tokens) > spec.tokens_max) {
      return Refuse(field, Size(*tokens), absl::StrCat("at most max_tokens, ", spec.tokens_max, ", long"));
    }
  }
  if (!spec.draft.empty() && spec.decoding.initial_length > 0) {
    return Refuse("draft_ids", Size(spec.draft), "empty: the policy variable_length moves what is written");
  }
  if (spec.fixed.empty() && spec.draft.empty()) return absl::OkStatus();
  // What a procedure may change is to be decided, too.
  const bool edits = MakeProcedure(spec.decoding, ContextOf(spec))->edits() || spec.grid == BlockGrid::kCanvas;
  for (int32_t i = 0; i < spec.tokens_max; ++i) {
    const TokenId fixed = At(spec.fixed, i), draft = edits ? -1 : At(spec.draft, i);
    if (fixed < 0 && draft < 0) return absl::OkStatus();
    const TokenId token = fixed >= 0 ? fixed : draft;
    if (std::binary_search(spec.stop_ids.begin(), spec.stop_ids.end(), token)) {
      return Refuse(absl::StrCat(fixed >= 0 ? "fixed_ids[" : "draft_ids[", i, "]"), token,
                    "no stop token: nothing is left to be decided before it");
    }
  }
  return Refuse(spec.fixed.empty() ? "draft_ids" : "fixed_ids", spec.tokens_max,
                "less than the whole answer: nothing is left to be decided");
}

}  // namespace quicksilver
