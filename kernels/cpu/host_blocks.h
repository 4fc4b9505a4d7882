#pragma once

#include "kernels/policy/block_step.h"

namespace quicksilver {

/// Ops::AdvanceBlocks in host memory.
void AdvanceBlocksOnHost(const BlockStep& step);

}  // namespace quicksilver
