#include "kernels/cuda/launch.h"
#include "kernels/cuda/program.h"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

__global__ void ContinueLoopKernel(cudaGraphConditionalHandle loop, const int32_t* proceed) {
  SetLoopContinues(loop, *proceed != 0);
}

}  // namespace

cudaError_t LaunchContinueLoop(cudaGraphConditionalHandle loop, const int32_t* proceed, cudaStream_t stream) {
  return Launch(ContinueLoopKernel, {.grid = dim3(1), .block = dim3(1), .stream = stream}, loop, proceed);
}

}  // namespace quicksilver
