#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/escaping.h"

// Adds 40 to the second int of the memory whose IPC handle, in hexadecimal, is the argument.

namespace {

__global__ void AddKernel(int* values) { values[1] += 40; }

bool Succeeds(const char* call, cudaError_t error) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorName(error));
  return error == cudaSuccess;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string bytes = absl::HexStringToBytes(argc == 2 ? argv[1] : "");
  cudaIpcMemHandle_t handle = {};
  if (bytes.size() != sizeof handle.reserved) return 2;
  std::copy(bytes.begin(), bytes.end(), handle.reserved);
  void* memory = nullptr;
  if (!Succeeds("open", cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess))) return 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = config.blockDim = 1;
  if (!Succeeds("launch", cudaLaunchKernelEx(&config, AddKernel, static_cast<int*>(memory)))) return 1;
  return Succeeds("close", cudaIpcCloseMemHandle(memory)) ? 0 : 1;
}
