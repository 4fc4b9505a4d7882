#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/decoding/sequence.h"

namespace quicksilver {
namespace {

absl::Status Refuse(const std::string& field, int64_t value, const std::string& bound) {
  return absl::InvalidArgumentError(absl::StrCat("checkpoint.", field, " (", value, ") must be ", bound));
}

// Of the block that holds the first position that is not final.
struct OpenRange {
  int32_t first = 0;  // Of the answer.
  int32_t end = 0;
};

absl::StatusOr<OpenRange> FindOpenBlock(const SequenceSpec& spec, int32_t answer_end) {
  const int32_t final_before = spec.resumption->final_before;
  const int32_t prompt = static_cast<int32_t>(spec.prompt.size());
  const int32_t wanted = std::min(prompt + spec.tokens_max, answer_end);
  if (final_before < prompt || final_before >= wanted) {
    return Refuse("final_before", final_before,
                  absl::StrCat("in [", prompt, ", ", wanted, "): from the prompt's end to the last wanted token"));
  }
  const int32_t origin = spec.grid == BlockGrid::kAbsolute ? 0 : prompt;
  const int32_t block = spec.decoding.block_length;
  if (final_before != prompt && (final_before - origin) % block != 0) {
    return Refuse(
        "final_before", final_before,
        absl::StrCat("the end of the prompt (", prompt, ") or of a block: ", origin, " plus a multiple of ", block));
  }
  return OpenRange{final_before, std::min(origin + ((final_before - origin) / block + 1) * block, answer_end)};
}

absl::StatusOr<int32_t> AnswerEndOf(const SequenceSpec& spec) {
  const int32_t first = AnswerEndAtFirst(spec), most = AnswerEndMax(spec);
  const int32_t length = spec.resumption->canvas_length, suffix = static_cast<int32_t>(spec.suffix.size());
  if (length == 0) return first;
  if (length < first + suffix || length > most + suffix) {
    return Refuse("canvas_length", length, absl::StrCat("0 or in [", first + suffix, ", ", most + suffix, "]"));
  }
  return length - suffix;
}

bool IsGiven(const std::vector<TokenId>& tokens, size_t i) { return i < tokens.size() && tokens[i] >= 0; }

// On the canvas grid a draft is written nowhere: it is the first input alone.
bool IsDrafted(const SequenceSpec& spec, size_t i) { return spec.grid != BlockGrid::kCanvas && IsGiven(spec.draft, i); }

// What a sequence would hold there; -1: masked.
TokenId TokenAt(const SequenceSpec& spec, size_t i) {
  if (IsGiven(spec.resumption->tokens, i)) return spec.resumption->tokens[i];
  if (IsGiven(spec.fixed, i)) return spec.fixed[i];
  return IsDrafted(spec, i) ? spec.draft[i] : -1;
}

// Blocks in which nothing is to be decided are closed at once, when the first of them was not begun: something must be
// left behind them.
absl::Status CheckUndecided(const SequenceSpec& spec, const Procedure& procedure, const OpenRange& open,
                            int32_t answer_end) {
  const Resumption& from = *spec.resumption;
  const int32_t prompt = static_cast<int32_t>(spec.prompt.size());
  int32_t undecided = open.first;
  for (; undecided < answer_end; ++undecided) {
    const size_t i = static_cast<size_t>(undecided - prompt);
    if (TokenAt(spec, i) < 0 || (procedure.edits() && !IsGiven(spec.fixed, i))) break;
  }
  if (undecided < open.end) return absl::OkStatus();
  if (from.block_forwards > 0) return Refuse("block_step", from.block_forwards, "0: the open block has no mask");
  const int32_t block = spec.decoding.block_length;
  const int32_t closed_end = undecided < answer_end ? open.end + (undecided - open.end) / block * block : answer_end;
  const int32_t wanted = std::min(prompt + spec.tokens_max, answer_end);
  if (closed_end >= wanted) {
    return Refuse("final_before", from.final_before, "the beginning of an unfinished answer: it has no mask");
  }
  for (int32_t p = open.first; p < closed_end; ++p) {
    const TokenId token = TokenAt(spec, static_cast<size_t>(p - prompt));
    if (std::binary_search(spec.stop_ids.begin(), spec.stop_ids.end(), token)) {
      return Refuse(absl::StrCat("tokens[", p - prompt, "]"), token, "no stop token: the sequence has ended");
    }
  }
  return absl::OkStatus();
}

// How many positions of the open block were decided.
absl::StatusOr<int32_t> CheckTokens(const SequenceSpec& spec, const Procedure& procedure, const OpenRange& open,
                                    int32_t answer_end) {
  const std::vector<TokenId>& tokens = spec.resumption->tokens;
  const int32_t prompt = static_cast<int32_t>(spec.prompt.size()), count = static_cast<int32_t>(tokens.size());
  if (prompt + count < open.first) {
    return Refuse("tokens", count, absl::StrCat("at least ", open.first - prompt, " long: the final ones"));
  }
  const bool ahead = procedure.writes_ahead();
  const bool undecided = spec.decoding.finish_blocks || procedure.edits();
  int32_t committed = 0;
  bool masked = false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t position = prompt + i;
    const size_t index = static_cast<size_t>(i);
    const std::string field = absl::StrCat("tokens[", i, "]");
    const bool fixed = IsGiven(spec.fixed, index), given = fixed || IsDrafted(spec, index);
    const TokenId token = tokens[index] < 0 && fixed ? spec.fixed[index] : tokens[index];
    if (fixed && token != spec.fixed[index]) {
      return Refuse(field, token, absl::StrCat(spec.fixed[index], ", as in fixed_ids"));
    }
    if (token < 0) {
      if (position < open.first) return Refuse(field, token, "a token: its position is final");
      masked = masked || (position < open.end && !given);
      continue;
    }
    if (position >= answer_end) return Refuse(field, token, absl::StrCat("-1: the answer ends at ", answer_end));
    if (position >= open.end && !given && !ahead) {
      return Refuse(field, token, absl::StrCat("-1: its block is not open before ", open.end));
    }
    const bool unfinished = position >= open.first && (masked || undecided || position >= open.end);
    const bool wanted = position < prompt + spec.tokens_max;
    if (wanted && !unfinished && std::binary_search(spec.stop_ids.begin(), spec.stop_ids.end(), token)) {
      return Refuse(field, token, "no stop token: the sequence has ended");
    }
    if (position >= open.first && position < open.end && !given) ++committed;
  }
  return committed;
}

// `decided`, of `closed` positions of closed blocks: every forward of a rank policy writes a token; other procedures
// may take a number of forwards that only their own bound tells.
absl::Status CheckForwards(const SequenceSpec& spec, const Procedure& procedure, bool exact, int32_t committed,
                           int32_t closed) {
  const Resumption& from = *spec.resumption;
  const int32_t block = spec.decoding.block_length;
  const int32_t least = exact && committed > 0 ? 1 : 0, most = exact ? committed : procedure.steps_max(block);
  if (from.block_forwards < least || from.block_forwards > most) {
    return Refuse("block_step", from.block_forwards,
                  exact ? absl::StrCat("in [", least, ", ", most, "]: the open block has so many tokens")
                        : absl::StrCat("in [", least, ", ", most, "]"));
  }
  const int32_t closed_blocks = (closed + block - 1) / block + 1;
  const int64_t closed_most = exact ? closed : int64_t{closed_blocks} * procedure.steps_max(block);
  const int32_t closed_least = closed > 0 && exact ? 1 : 0;
  const int64_t closed_forwards = int64_t{from.forwards} - from.block_forwards;
  if (closed_forwards < closed_least || closed_forwards > closed_most) {
    return Refuse("step", from.forwards,
                  absl::StrCat("in [", from.block_forwards + closed_least, ", ", from.block_forwards + closed_most,
                               "]: block_step and the forwards of ", closed, " final tokens"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckResumption(const SequenceSpec& spec) {
  CHECK(spec.resumption.has_value());
  const Resumption& from = *spec.resumption;
  const std::unique_ptr<Procedure> procedure = MakeProcedure(spec.decoding, ContextOf(spec));
  ASSIGN_OR_RETURN(const int32_t answer_end, AnswerEndOf(spec));
  ASSIGN_OR_RETURN(const OpenRange open, FindOpenBlock(spec, answer_end));
  ASSIGN_OR_RETURN(const int32_t committed, CheckTokens(spec, *procedure, open, answer_end));
  if (procedure->stateful() || spec.decoding.cache != Cache::kNone) {
    if (from.block_forwards != 0) {
      return Refuse("block_step", from.block_forwards, "0: the open block has state that its tokens do not tell");
    }
    if (committed != 0) return Refuse("tokens", committed, "-1 in the open block: it begins anew");
  }
  if (committed == open.end - open.first && !procedure->edits()) {
    return Refuse("final_before", from.final_before,
                  absl::StrCat("at least ", open.end, ": no position below that is masked"));
  }
  RETURN_IF_ERROR(CheckUndecided(spec, *procedure, open, answer_end));
  const bool exact =
      procedure->writes_always() && !procedure->writes_ahead() && spec.fixed.empty() && spec.draft.empty();
  return CheckForwards(spec, *procedure, exact, committed, open.first - static_cast<int32_t>(spec.prompt.size()));
}

}  // namespace quicksilver
