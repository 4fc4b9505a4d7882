#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/gemm_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.h"

namespace quicksilver {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kGroup = 8;  // Columns that a thread handles at once: 16 bytes of bf16.
constexpr int64_t kBlocksMax = 132 * 16;
constexpr int kQuantizeThreadsMax = 1024;
constexpr int kHeldGroups = 2;

__device__ __forceinline__ float ToFloat(float v) { return v; }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ void Store(float v, float* to) { *to = v; }
__device__ __forceinline__ void Store(float v, __nv_bfloat16* to) { *to = __float2bfloat16_rn(v); }

__device__ __forceinline__ uint32_t E4m3(float v) { return static_cast<uint32_t>(__nv_fp8_e4m3(v).__x); }

/// What is read: zeros outside of [rows, cols]. `wide`: groups are aligned to 16 bytes and cols is a multiple of them.
template <typename T>
struct Source {
  const T* values;
  int64_t rows;
  int64_t cols;
  int64_t stride;
  bool wide;
};

template <typename T>
__device__ __forceinline__ void LoadGroup(const Source<T>& from, int64_t row, int64_t col, float (&values)[kGroup]) {
  const T* const at = from.values + row * from.stride + col;
  if (from.wide && row < from.rows && col < from.cols) {
    constexpr int kWords = kGroup * sizeof(T) / sizeof(uint4);
    union {
      uint4 words[kWords];
      T elements[kGroup];
    } group;
#pragma unroll
    for (int i = 0; i < kWords; ++i) group.words[i] = reinterpret_cast<const uint4*>(at)[i];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) values[i] = ToFloat(group.elements[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) values[i] = row < from.rows && col + i < from.cols ? ToFloat(at[i]) : 0.0f;
}

template <typename T>
struct Target {
  T* values;
  int64_t rows;
  int64_t cols;
  int64_t stride;
  bool wide;
};

template <typename T>
__device__ __forceinline__ void StoreGroup(const float (&values)[kGroup], const Target<T>& to, int64_t row,
                                           int64_t col) {
  T* const at = to.values + row * to.stride + col;
  if (to.wide) {
    constexpr int kWords = kGroup * sizeof(T) / sizeof(uint4);
    union {
      uint4 words[kWords];
      T elements[kGroup];
    } group;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) Store(values[i], &group.elements[i]);
#pragma unroll
    for (int i = 0; i < kWords; ++i) reinterpret_cast<uint4*>(at)[i] = group.words[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    if (col + i < to.cols) Store(values[i], at + i);
  }
}

// A thread takes groups of columns, in the order of memory.
template <typename From, typename To>
__global__ void __launch_bounds__(kThreads) ConvertRowsKernel(Source<From> from, Target<To> to) {
  const int64_t row_groups = (to.cols + kGroup - 1) / kGroup;
  const int64_t groups = to.rows * row_groups;
  for (int64_t g = int64_t{blockIdx.x} * kThreads + threadIdx.x; g < groups; g += int64_t{gridDim.x} * kThreads) {
    const int64_t row = g / row_groups, col = g % row_groups * kGroup;
    float values[kGroup];
    LoadGroup(from, row, col, values);
    StoreGroup(values, to, row, col);
  }
}

/// The largest of all threads' values, of at most kQuantizeThreadsMax. Exact, so in no particular order.
__device__ __forceinline__ float BlockMax(float value) {
  float* const warp_values = reinterpret_cast<float*>(SharedMemory());
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, lane_mask));
  }
  if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  value = lane < warps ? warp_values[lane] : 0.0f;
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, lane_mask));
  }
  return value;
}

__device__ __forceinline__ float AmaxOf(const float (&values)[kGroup], float amax) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) amax = fmaxf(amax, fabsf(values[i]));
  return amax;
}

__device__ __forceinline__ void StoreE4m3(const float (&values)[kGroup], float factor, uint2* to) {
  uint32_t packed[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kGroup; ++i) packed[i / 4] |= E4m3(__fmul_rn(values[i], factor)) << (8 * (i % 4));
  *to = make_uint2(packed[0], packed[1]);
}

// A block a row. A thread keeps its first groups of columns in registers; a row of up to 16,384 has no others.
template <typename From>
__global__ void __launch_bounds__(kQuantizeThreadsMax) QuantizeRowsKernel(Source<From> from, QuantizedRows to) {
  DependencyWait();
  DependencyLaunch();
  const int64_t row = blockIdx.x;
  const int64_t first = int64_t{threadIdx.x} * kGroup, step = int64_t{blockDim.x} * kGroup;
  float held[kHeldGroups][kGroup] = {};
  float amax = 0.0f;
#pragma unroll
  for (int h = 0; h < kHeldGroups; ++h) {
    if (first + h * step < to.cols) LoadGroup(from, row, first + h * step, held[h]);
  }
#pragma unroll
  for (int h = 0; h < kHeldGroups; ++h) amax = AmaxOf(held[h], amax);
  for (int64_t col = first + kHeldGroups * step; col < to.cols; col += step) {
    float values[kGroup];
    LoadGroup(from, row, col, values);
    amax = AmaxOf(values, amax);
  }
  amax = BlockMax(amax);
  const bool zero = amax < kQuantizedAmaxMin;
  const float factor = zero ? 0.0f : __fdiv_rn(kE4m3Max, amax);
  if (threadIdx.x == 0) to.scales[row] = zero ? 0.0f : __fdiv_rn(amax, kE4m3Max);
  uint2* const out = reinterpret_cast<uint2*>(static_cast<unsigned char*>(to.values) + row * to.cols);
#pragma unroll
  for (int h = 0; h < kHeldGroups; ++h) {
    if (first + h * step < to.cols) StoreE4m3(held[h], factor, out + (first + h * step) / kGroup);
  }
  for (int64_t col = first + kHeldGroups * step; col < to.cols; col += step) {
    float values[kGroup];
    LoadGroup(from, row, col, values);
    StoreE4m3(values, factor, out + col / kGroup);
  }
}

template <typename To>
__global__ void __launch_bounds__(kThreads)
    ScaleProductsKernel(Source<float> products, const float* row_scales, const float* column_scales, Target<To> out) {
  const int64_t row_groups = (out.cols + kGroup - 1) / kGroup;
  const int64_t groups = out.rows * row_groups;
  for (int64_t g = int64_t{blockIdx.x} * kThreads + threadIdx.x; g < groups; g += int64_t{gridDim.x} * kThreads) {
    const int64_t row = g / row_groups, col = g % row_groups * kGroup;
    float values[kGroup];
    LoadGroup(products, row, col, values);
    const float row_scale = row_scales[row];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const float column_scale = col + i < out.cols ? column_scales[col + i] : 0.0f;
      values[i] = __fmul_rn(__fmul_rn(values[i], row_scale), column_scale);
    }
    StoreGroup(values, out, row, col);
  }
}

/// Every bit of the result depends on every bit of `x` (the finaliser of MurmurHash3).
__device__ __forceinline__ uint32_t Mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

/// Pairs stand an odd distance apart, so that no power-of-two cut of the columns falls between all of them.
__device__ __forceinline__ int64_t PairDistance(int64_t cols) { return cols < 32 ? 1 : cols / 14 | 1; }

__device__ __forceinline__ void StoreProbe(const ProbeMatrix& matrix, int64_t at, float value) {
  if (matrix.type == ProbeType::kF32) {
    static_cast<float*>(matrix.values)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(matrix.values)[at] = __float2bfloat16_rn(value);
  }
}

__global__ void __launch_bounds__(kThreads) FillOnesKernel(ProbeMatrix matrix, ProbeRows rows) {
  constexpr unsigned char kOneE4m3 = 0x38;
  const int64_t elements = matrix.rows * matrix.cols;
  for (int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x; e < elements; e += int64_t{gridDim.x} * kThreads) {
    const int64_t row = e / matrix.cols, col = e % matrix.cols, at = row * matrix.stride + col;
    const bool one = ProbeSource(rows, row) % 2 == 0 || col >= matrix.cols - kProbeTail;
    if (col == 0 && matrix.scales != nullptr) matrix.scales[row] = 1.0f;
    if (matrix.type == ProbeType::kE4m3) {
      static_cast<unsigned char*>(matrix.values)[at] = one ? kOneE4m3 : 0;
    } else {
      StoreProbe(matrix, at, one ? 1.0f : 0.0f);
    }
  }
}

__global__ void __launch_bounds__(kThreads) FillProbeKernel(ProbeMatrix matrix, ProbeRows rows) {
  const int64_t distance = PairDistance(matrix.cols), pair_columns = 2 * distance;
  const int64_t elements = matrix.rows * matrix.cols;
  for (int64_t e = int64_t{blockIdx.x} * kThreads + threadIdx.x; e < elements; e += int64_t{gridDim.x} * kThreads) {
    const int64_t row = e / matrix.cols, col = e % matrix.cols;
    const uint32_t source = static_cast<uint32_t>(ProbeSource(rows, row));
    const uint32_t pair = static_cast<uint32_t>(col / pair_columns * distance + col % distance);
    const uint32_t hash = Mix(Mix(rows.seed + source) + pair);
    const bool paired = col / pair_columns * pair_columns + pair_columns <= matrix.cols;
    const bool negative = (hash >> 31 != 0) != (rows.alternate && col / distance % 2 != 0);
    const int64_t at = row * matrix.stride + col;
    if (col == 0 && matrix.scales != nullptr) {
      matrix.scales[row] = __uint_as_float(0x3F800000u | (Mix(rows.seed ^ (source + 1)) & 0x7FFFFFu));
    }
    if (matrix.type == ProbeType::kE4m3) {
      // All finite magnitudes: products of such different exponents do not fit into a float's sum.
      const uint32_t magnitude = hash % 0x7Fu;
      static_cast<unsigned char*>(matrix.values)[at] =
          static_cast<unsigned char>(paired ? magnitude | (negative ? 0x80u : 0u) : 0u);
      continue;
    }
    // In [1, 2) times 2^-3 to 2^4. Seven bits of fraction: the same number in both types.
    const uint32_t exponent = 124u + (hash >> 7) % 8u;
    const float value = __uint_as_float((negative ? 0x80000000u : 0u) | exponent << 23 | (hash & 0x7Fu) << 16);
    StoreProbe(matrix, at, paired ? value : 0.0f);
  }
}

template <typename T>
__device__ __forceinline__ uint32_t Word(const T* element) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const uint32_t*>(element);
  } else {
    return *reinterpret_cast<const uint16_t*>(element);
  }
}

__device__ __forceinline__ uint32_t WarpSum(uint32_t value) {
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, lane_mask);
  return value;
}

// A warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) DigestRowsKernel(Source<T> out, int64_t period, RowDigest* digests) {
  for (int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; row < out.rows;
       row += int64_t{gridDim.x} * kWarps) {
    const T* const at = out.values + row * out.stride;
    uint32_t low = 0, high = 0, differing = 0;
    for (int64_t c = threadIdx.x % 32; c < out.cols; c += 32) {
      const uint32_t word = Word(at + c);
      if (c < period) {
        const uint32_t column = static_cast<uint32_t>(c);
        low += Mix(word + Mix(column));
        high += Mix(word ^ Mix(~column));
      } else {
        differing += word != Word(at + c % period) ? 1 : 0;
      }
    }
    low = WarpSum(low);
    high = WarpSum(high);
    differing = WarpSum(differing);
    if (threadIdx.x % 32 == 0) digests[row] = {uint64_t{high} << 32 | low, differing, 0};
  }
}

/// Blocks for `items` threads.
unsigned Blocks(int64_t items) {
  const int64_t wanted = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(wanted < 1 ? 1 : wanted > kBlocksMax ? kBlocksMax : wanted);
}

bool IsWide(const void* data, int64_t cols, int64_t stride, DType dtype) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && cols % kGroup == 0 &&
         stride * static_cast<int64_t>(ElementBytes(dtype)) % 16 == 0;
}

template <typename T>
Source<T> SourceOf(const ConstMatrix& m) {
  return {static_cast<const T*>(m.data), m.rows, m.cols, m.stride, IsWide(m.data, m.cols, m.stride, m.dtype)};
}

template <typename T>
Target<T> TargetOf(const Matrix& m) {
  return {static_cast<T*>(m.data), m.rows, m.cols, m.stride, IsWide(m.data, m.cols, m.stride, m.dtype)};
}

template <typename From>
cudaError_t LaunchConvertFrom(const ConstMatrix& from, const Matrix& to, const LaunchShape& shape) {
  if (to.dtype == DType::kF32) {
    return Launch(ConvertRowsKernel<From, float>, shape, SourceOf<From>(from), TargetOf<float>(to));
  }
  return Launch(ConvertRowsKernel<From, __nv_bfloat16>, shape, SourceOf<From>(from), TargetOf<__nv_bfloat16>(to));
}

LaunchShape FlatShape(int64_t items, cudaStream_t stream) {
  return {.grid = dim3(Blocks(items)), .block = dim3(kThreads), .stream = stream};
}

int64_t Groups(const Matrix& m) { return m.rows * ((m.cols + kGroup - 1) / kGroup); }

}  // namespace

cudaError_t LaunchConvertRows(ConstMatrix from, Matrix to, cudaStream_t stream) {
  if (to.rows == 0 || to.cols == 0) return cudaSuccess;
  const LaunchShape shape = FlatShape(Groups(to), stream);
  if (from.dtype == DType::kF32) return LaunchConvertFrom<float>(from, to, shape);
  return LaunchConvertFrom<__nv_bfloat16>(from, to, shape);
}

cudaError_t LaunchQuantizeRows(ConstMatrix from, const QuantizedRows& to, cudaStream_t stream) {
  if (to.rows == 0) return cudaSuccess;
  // A group a thread where that is possible: small batches wait for their loads, not for bandwidth.
  const int64_t threads = (to.cols / kGroup + 31) / 32 * 32;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(to.rows)),
      .block = dim3(threads > kQuantizeThreadsMax ? kQuantizeThreadsMax : static_cast<unsigned>(threads)),
      .shared_bytes = kQuantizeThreadsMax / 32 * sizeof(float),
      .stream = stream,
      .overlap = true};
  if (from.dtype == DType::kF32) return Launch(QuantizeRowsKernel<float>, shape, SourceOf<float>(from), to);
  return Launch(QuantizeRowsKernel<__nv_bfloat16>, shape, SourceOf<__nv_bfloat16>(from), to);
}

cudaError_t LaunchScaleProducts(ConstMatrix products, const float* row_scales, const float* column_scales, Matrix out,
                                cudaStream_t stream) {
  if (out.rows == 0 || out.cols == 0) return cudaSuccess;
  const LaunchShape shape = FlatShape(Groups(out), stream);
  const Source<float> from = SourceOf<float>(products);
  if (out.dtype == DType::kF32) {
    return Launch(ScaleProductsKernel<float>, shape, from, row_scales, column_scales, TargetOf<float>(out));
  }
  return Launch(ScaleProductsKernel<__nv_bfloat16>, shape, from, row_scales, column_scales,
                TargetOf<__nv_bfloat16>(out));
}

cudaError_t LaunchFillProbe(const ProbeMatrix& matrix, const ProbeRows& rows, cudaStream_t stream) {
  const LaunchShape shape = FlatShape(matrix.rows * matrix.cols, stream);
  return Launch(rows.ones ? FillOnesKernel : FillProbeKernel, shape, matrix, rows);
}

cudaError_t LaunchDigestRows(ConstMatrix out, int64_t period, RowDigest* digests, cudaStream_t stream) {
  const LaunchShape shape = FlatShape(out.rows * 32, stream);
  if (out.dtype == DType::kF32) return Launch(DigestRowsKernel<float>, shape, SourceOf<float>(out), period, digests);
  return Launch(DigestRowsKernel<__nv_bfloat16>, shape, SourceOf<__nv_bfloat16>(out), period, digests);
}

}  // namespace quicksilver
