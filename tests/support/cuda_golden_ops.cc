#include <cuda_runtime_api.h>

#include "common/check.h"
#include "kernels/cuda/cuda_ops.h"
#include "tests/support/golden_ops.h"

namespace quicksilver {

// One rank: the suites' communicators add in host memory.
std::vector<GoldenOps> AllGoldenOps() {
  GoldenOps cuda = {"cuda",
                    [](DType activation) {
                      absl::StatusOr<std::unique_ptr<Ops>> ops =
                          MakeCudaOps({.activation = activation, .deterministic = true});
                      CHECK(ops.ok());
                      return *std::move(ops);
                    },
                    /*ranks_max=*/1};
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    cuda.missing = std::string(MakeCudaOps({}).status().message());
  }
  return {cuda};
}

}  // namespace quicksilver
