#pragma once

#include <cuda_runtime_api.h>

#include "kernels/policy/block_step.h"

namespace quicksilver {

/// Ops::AdvanceBlocks: one thread block an open block, then one thread that ends the step and publishes it.
cudaError_t LaunchAdvanceBlocks(const BlockStep& step, cudaStream_t stream);

}  // namespace quicksilver
