#include "kernels/cuda/blocks.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

constexpr int32_t kThreads = 128;

// What the threads of a block agree on.
struct Shared {
  int32_t above;
  int32_t unfinite;
  int32_t stop;
};

__global__ void __launch_bounds__(kThreads) AdvanceBlocksKernel(BlockStep step) {
  DependencyWait();
  OpenBlock& block = step.blocks[blockIdx.x];
  if (block.rows == 0) return;  // The whole thread block.
  Shared& shared = *reinterpret_cast<Shared*>(SharedMemory());
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t live = block.live;
  if (thread == 0) shared = {};
  __syncthreads();
  for (int32_t i = thread; i < live; i += kThreads) {
    if (!ChooseToken(step, block, i).finite) atomicExch(&shared.unfinite, 1);
    if (step.ranking[block.first_row + i] > block.rule.threshold) atomicAdd(&shared.above, 1);
  }
  __syncthreads();
  if (shared.unfinite != 0 || IsHosts(block)) {
    if (thread == 0) atomicExch(&step.control->stop, 1);
    return;
  }
  for (int32_t i = thread; i < live; i += kThreads) {
    step.selected[block.first_row + i] = SelectRow(step, block, i, shared.above) ? 1 : 0;
    if (CommitRow(step, block, i)) atomicExch(&shared.stop, 1);
  }
  __syncthreads();
  if (thread != 0) return;
  if (KeepLiveRows(step, block) || shared.stop != 0) atomicExch(&step.control->stop, 1);
}

// After AdvanceBlocksKernel in the stream, so everything that the blocks wrote is visible to the host once it sees the
// published count.
__global__ void EndStepKernel(BlockStep step) {
  DependencyWait();
  EndStep(step);
  StoreReleaseSystem(step.results.published, static_cast<uint32_t>(step.control->step));
}

}  // namespace

cudaError_t LaunchAdvanceBlocks(const BlockStep& step, cudaStream_t stream) {
  if (step.blocks_count > 0) {
    const LaunchShape shape = {.grid = dim3(static_cast<unsigned>(step.blocks_count)),
                               .block = dim3(kThreads),
                               .shared_bytes = sizeof(Shared),
                               .stream = stream,
                               .overlap = true};
    if (const cudaError_t error = Launch(AdvanceBlocksKernel, shape, step); error != cudaSuccess) return error;
  }
  return Launch(EndStepKernel, {.grid = dim3(1), .block = dim3(1), .stream = stream, .overlap = true}, step);
}

}  // namespace quicksilver
