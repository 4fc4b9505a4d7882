#include "kernels/cpu/cpu_ops.h"
#include "tests/support/golden_ops.h"

namespace quicksilver {

std::vector<GoldenOps> AllGoldenOps() {
  return {{"reference", MakeReferenceOps},
          {"cpu", [](DType activation) { return MakeCpuOps(activation, CpuOpsOptions()); }}};
}

}  // namespace quicksilver
