#include <type_traits>

#include "tests/support/cuda_twin/include/cuda_bf16.h"
#include "tests/support/cuda_twin/include/cuda_fp8.h"
#include "tests/support/cuda_twin/include/cuda_runtime.h"
#include "tests/support/cuda_twin/include/kernels/cuda/ptx.h"

// What a device fixes, and host code relies on when it fills memory for kernels.

namespace quicksilver {
namespace {

template <typename T>
constexpr bool Is(size_t bytes, size_t alignment) {
  return sizeof(T) == bytes && alignof(T) == alignment && std::is_trivially_copyable_v<T>;
}

static_assert(Is<dim3>(12, 4) && Is<uint3>(12, 4));
static_assert(Is<int2>(8, 8) && Is<uint2>(8, 8) && Is<float2>(8, 8) && Is<double2>(16, 16));
static_assert(Is<int4>(16, 16) && Is<uint4>(16, 16) && Is<float4>(16, 16));
static_assert(Is<__nv_bfloat16>(2, 2) && Is<__nv_bfloat162>(4, 4) && Is<__nv_fp8_e4m3>(1, 1));
static_assert(sizeof(cudaIpcMemHandle_t) == 64 && sizeof(cudaLaunchAttribute) == 72);
static_assert(offsetof(cudaGraphNodeParams, conditional) == 16 && sizeof(cudaGraphNodeParams) == 256);

}  // namespace
}  // namespace quicksilver
