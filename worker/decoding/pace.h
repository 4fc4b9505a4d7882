#pragma once

#include <cstdint>

namespace quicksilver {

/// What is left to denoise of a sequence.
struct RemainingMasks {
  int32_t open = 0;   ///< In the open block.
  int32_t later = 0;  ///< Behind it, in blocks of `block_length`; the last one may be shorter.
  int32_t block_length = 0;
};

/// Steps that it takes to denoise `masks` when a step commits `commits` tokens, or what its block has left.
int64_t StepsFor(const RemainingMasks& masks, int32_t commits);

/// The least number of tokens that a step has to commit so that `masks` are done in `steps_left` steps: 0 when one
/// token a step will do, the longest block's length when not even whole blocks will. BlockRule::commits_min.
int32_t CommitsForPace(const RemainingMasks& masks, int64_t steps_left);

}  // namespace quicksilver
