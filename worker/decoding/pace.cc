#include "worker/decoding/pace.h"

#include <algorithm>

#include "common/check.h"

namespace quicksilver {
namespace {

int64_t CeilDiv(int32_t a, int32_t b) { return (int64_t{a} + b - 1) / b; }

}  // namespace

int64_t StepsFor(const RemainingMasks& masks, int32_t commits) {
  const int32_t whole = masks.later / masks.block_length, rest = masks.later % masks.block_length;
  return CeilDiv(masks.open, commits) + whole * CeilDiv(masks.block_length, commits) + CeilDiv(rest, commits);
}

int32_t CommitsForPace(const RemainingMasks& masks, int64_t steps_left) {
  CHECK(masks.block_length > 0);
  // StepsFor() falls with `commits`.
  int32_t low = 1, high = std::max(1, masks.later > 0 ? std::max(masks.open, masks.block_length) : masks.open);
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (StepsFor(masks, middle) <= steps_left) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low == 1 ? 0 : low;
}

}  // namespace quicksilver
