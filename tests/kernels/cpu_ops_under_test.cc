#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/ops_fixture.h"

namespace quicksilver {

std::vector<OpsUnderTest> AllOpsUnderTest() {
  std::vector<OpsUnderTest> all;
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    const std::string suffix = dtype == DType::kF32 ? "F32" : "Bf16";
    const auto cpu = [dtype](int32_t threads, int32_t tile_rows) {
      return [=] { return MakeCpuOps(dtype, {.threads = threads, .tile_rows = tile_rows}); };
    };
    all.push_back({"Reference" + suffix, [dtype] { return MakeReferenceOps(dtype); }});
    all.push_back({"Cpu" + suffix, cpu(1, CpuOpsOptions{}.tile_rows)});
    all.push_back({"CpuTile24Threads2" + suffix, cpu(2, 24)});
  }
  return all;
}

std::vector<OpsUnderTest> CoarseOpsUnderTest() {
  const auto missing = [] {
    return std::string(HasInt8Products() ? "" : "this processor does not add up products of bytes exactly");
  };
  return {
      {"CpuInt8F32", [] { return MakeCpuOps(DType::kF32, {.int8_layers = true}); }, missing},
      {"CpuInt8Bf16Threads2", [] { return MakeCpuOps(DType::kBf16, {.threads = 2, .int8_layers = true}); }, missing}};
}

}  // namespace quicksilver
