#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/ops_fixture.h"

namespace quicksilver {
namespace {

/// Where there is a driver and a device, whatever keeps them from working is a failure.
std::string MissingDevice() {
  int driver = 0, count = 0;
  const bool none =
      (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) || cudaGetDeviceCount(&count) == cudaErrorNoDevice;
  cudaGetLastError();
  return none ? std::string(MakeCudaOps({}).status().message()) : "";
}

CudaOpsOptions OptionsFor(DType dtype) {
  CudaOpsOptions options = {.activation = dtype};
#ifdef QUICKSILVER_CUDA_TWIN
  // A CPU takes long for what a device tries out in a moment, and its times tell nothing.
  options.gemm.plans = {.small_rows = 8, .large_rows = 64, .timed_runs = 0, .warm_ups = 0, .cold_cache = false};
  options.gemm.row_buckets = {8, 16, 64};
#endif
  return options;
}

}  // namespace

std::vector<OpsUnderTest> AllOpsUnderTest() {
  std::vector<OpsUnderTest> all;
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    all.push_back({dtype == DType::kF32 ? "CudaF32" : "CudaBf16", [dtype] { return MakeCudaOps(OptionsFor(dtype)); },
                   MissingDevice});
  }
  return all;
}

// The rows of fp8 layers are held apart in tests/kernels/cuda/cuda_gemm_row_test.cc.
std::vector<OpsUnderTest> CoarseOpsUnderTest() { return {}; }

}  // namespace quicksilver
