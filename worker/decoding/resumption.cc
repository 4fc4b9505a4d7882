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

absl::StatusOr<OpenRange> FindOpenBlock(const SequenceSpec& spec, int32_t length) {
  const int32_t final_before = spec.resumption->final_before;
  const int32_t prompt = static_cast<int32_t>(spec.prompt.size()), wanted = prompt + spec.tokens_max;
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
  return OpenRange{final_before, std::min(origin + ((final_before - origin) / block + 1) * block, length)};
}

// How many positions of the open block have a token.
absl::StatusOr<int32_t> CheckTokens(const SequenceSpec& spec, const OpenRange& open) {
  const std::vector<TokenId>& tokens = spec.resumption->tokens;
  const int32_t prompt = static_cast<int32_t>(spec.prompt.size()), count = static_cast<int32_t>(tokens.size());
  if (prompt + count < open.first) {
    return Refuse("tokens", count, absl::StrCat("at least ", open.first - prompt, " long: the final ones"));
  }
  int32_t committed = 0;
  bool masked = false;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t position = prompt + i;
    const TokenId token = tokens[static_cast<size_t>(i)];
    const std::string field = absl::StrCat("tokens[", i, "]");
    if (token < 0) {
      if (position < open.first) return Refuse(field, token, "a token: its position is final");
      masked = masked || position < open.end;
      continue;
    }
    if (position >= open.end) return Refuse(field, token, absl::StrCat("-1: its block is not open before ", open.end));
    const bool unfinished = position >= open.first && (masked || spec.finish_blocks);
    const bool wanted = position < prompt + spec.tokens_max;
    if (wanted && !unfinished && std::binary_search(spec.stop_ids.begin(), spec.stop_ids.end(), token)) {
      return Refuse(field, token, "no stop token: the sequence has ended");
    }
    if (position >= open.first) ++committed;
  }
  return committed;
}

}  // namespace

absl::Status CheckResumption(const SequenceSpec& spec) {
  CHECK(spec.resumption.has_value());
  const Resumption& from = *spec.resumption;
  const int32_t prompt = static_cast<int32_t>(spec.prompt.size());
  const int32_t length =
      CanvasLength(spec.grid, prompt, spec.tokens_max, spec.decoding.block_length, spec.positions_max);
  ASSIGN_OR_RETURN(const OpenRange open, FindOpenBlock(spec, length));
  ASSIGN_OR_RETURN(const int32_t committed, CheckTokens(spec, open));
  if (committed == open.end - open.first) {
    return Refuse("final_before", from.final_before,
                  absl::StrCat("at least ", open.end, ": no position below that is masked"));
  }
  // Every forward commits a token.
  if (from.block_forwards < (committed > 0 ? 1 : 0) || from.block_forwards > committed) {
    return Refuse("block_step", from.block_forwards,
                  absl::StrCat("in [", committed > 0 ? 1 : 0, ", ", committed, "]: the open block has so many tokens"));
  }
  const int32_t closed = open.first - prompt;
  const int32_t closed_forwards = from.forwards - from.block_forwards;
  if (closed_forwards < (closed > 0 ? 1 : 0) || closed_forwards > closed) {
    return Refuse("step", from.forwards,
                  absl::StrCat("in [", from.block_forwards + (closed > 0 ? 1 : 0), ", ", from.block_forwards + closed,
                               "]: block_step and the forwards of ", closed, " final tokens"));
  }
  return absl::OkStatus();
}

}  // namespace quicksilver
