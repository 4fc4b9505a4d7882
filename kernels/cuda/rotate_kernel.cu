#include <cmath>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/row_kernels.h"

namespace quicksilver {
namespace {

constexpr int kWarps = 4;  // Of a block.

/// By pair of a head. Travels with the launch: there is nowhere to upload it to while a step is recorded.
struct RopeFrequencies {
  float values[kRotatedHeadSizeMax / 2];
};

// One block a row. All layers of a step use its angles.
__global__ void RopeAnglesKernel(const int32_t* positions, const __grid_constant__ RopeFrequencies frequencies,
                                 int32_t pairs, bool round, float2* angles) {
  DependencyWait();
  DependencyLaunch();
  const int64_t n = blockIdx.x;
  const float position = static_cast<float>(positions[n]);
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += static_cast<int>(blockDim.x)) {
    float sine, cosine;
    sincosf(__fmul_rn(position, frequencies.values[i]), &sine, &cosine);
    if (round) {
      sine = RoundedTo<__nv_bfloat16>(sine);
      cosine = RoundedTo<__nv_bfloat16>(cosine);
    }
    angles[n * pairs + i] = make_float2(cosine, sine);
  }
}

/// Where the hd / 2 pairs of a head are. Those before `split` are i and i + split, the others, which are not rotated,
/// share what is behind them. split is even, or all pairs.
struct PairPlaces {
  __device__ __forceinline__ int32_t low(int32_t i) const { return i < split ? i : i + split; }
  __device__ __forceinline__ int32_t high(int32_t i) const { return i < split ? i + split : i + half; }
  __device__ __forceinline__ int32_t left(int32_t i) const { return (i < split ? split : half) - i; }
  int32_t half;
  int32_t split;
};

template <typename T>
struct RotateCall {
  T* qkv;
  int64_t stride;
  T* keys;
  int64_t keys_stride;
  T* values;
  int64_t values_stride;
  const float2* angles;
  const int32_t* slots;
  const float* q_gain;
  const float* k_gain;
  bool float_gain;
  bool norm_values;
  float epsilon;
  int32_t heads;
  int32_t kv_heads;
  int32_t turned;  // Pairs that are rotated.
  PairPlaces places;
};

/// A lane's pairs: 2 (lane + 32 k) and the next.
template <int kSteps>
struct Pairs {
  float low[kSteps][2];
  float high[kSteps][2];
};

template <typename T, int kSteps>
__device__ __forceinline__ void LoadPairs(const T* head, const PairPlaces& at, Pairs<kSteps>& pairs) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const int32_t i = 2 * static_cast<int32_t>(threadIdx.x % 32 + 32 * k);
    LoadRun(head + at.low(i), at.left(i), pairs.low[k]);
    LoadRun(head + at.high(i), at.left(i), pairs.high[k]);
  }
}

template <int kSteps>
__device__ __forceinline__ void SetPairs(float value, Pairs<kSteps>& pairs) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int j = 0; j < 2; ++j) pairs.low[k][j] = pairs.high[k][j] = value;
  }
}

template <typename T, int kSteps>
__device__ __forceinline__ void StorePairs(T* head, const PairPlaces& at, const Pairs<kSteps>& pairs) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const int32_t i = 2 * static_cast<int32_t>(threadIdx.x % 32 + 32 * k);
    StoreRun(head + at.low(i), at.left(i), pairs.low[k]);
    StoreRun(head + at.high(i), at.left(i), pairs.high[k]);
  }
}

template <typename T, int kSteps>
__device__ __forceinline__ void NormPairs(const Pairs<kSteps>& gains, bool float_gain, int32_t half, float epsilon,
                                          Pairs<kSteps>& pairs) {
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      squares = __fmaf_rn(pairs.low[k][j], pairs.low[k][j], squares);
      squares = __fmaf_rn(pairs.high[k][j], pairs.high[k][j], squares);
    }
  }
  const float scale = NormScale(WarpSum(squares), static_cast<float>(2 * half), epsilon);
  const auto normed = [&](float value, float gain) {
    value = __fmul_rn(value, scale);
    return RoundedTo<T>(__fmul_rn(float_gain ? value : RoundedTo<T>(value), gain));
  };
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      pairs.low[k][j] = normed(pairs.low[k][j], gains.low[k][j]);
      pairs.high[k][j] = normed(pairs.high[k][j], gains.high[k][j]);
    }
  }
}

template <int kSteps>
__device__ __forceinline__ void RotatePairs(const float2* angles, int32_t turned, Pairs<kSteps>& pairs) {
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int32_t i = 2 * static_cast<int32_t>(threadIdx.x % 32 + 32 * k) + j;
      if (i >= turned) continue;
      const float2 angle = angles[i];
      const float low = pairs.low[k][j], high = pairs.high[k][j];
      pairs.low[k][j] = __fmaf_rn(low, angle.x, -__fmul_rn(high, angle.y));
      pairs.high[k][j] = __fmaf_rn(high, angle.x, __fmul_rn(low, angle.y));
    }
  }
}

// A row is blockIdx.x; a warp does one of its heads: queries, then keys, then values, which are not rotated.
template <typename T, int kSteps>
__global__ void __launch_bounds__(kWarps * 32) RotateAndCacheKernel(RotateCall<T> call) {
  const int64_t n = blockIdx.x;
  const int32_t head = static_cast<int32_t>(blockIdx.y * kWarps + threadIdx.x / 32);
  const PairPlaces at = call.places;
  const int32_t rotated = call.heads + call.kv_heads, half = at.half;
  const bool is_query = head < call.heads, is_value = head >= rotated;
  const float* gain = is_value ? nullptr : is_query ? call.q_gain : call.k_gain;
  Pairs<kSteps> gains;
  SetPairs(1.0f, gains);
  // No kernel writes a gain, so it may be read before the kernels ahead are done.
  if (gain != nullptr) LoadPairs(gain, at, gains);
  DependencyWait();
  DependencyLaunch();
  if (head >= rotated + call.kv_heads) return;  // The whole warp.
  T* const data = call.qkv + n * call.stride + int64_t{head} * 2 * half;
  Pairs<kSteps> pairs;
  LoadPairs(static_cast<const T*>(data), at, pairs);
  if (is_value ? call.norm_values : gain != nullptr) {
    NormPairs<T>(gains, call.float_gain, half, call.epsilon, pairs);
    if (is_value) StorePairs(data, at, pairs);
  }
  if (!is_value) {
    RotatePairs(call.angles + n * call.turned, call.turned, pairs);
    StorePairs(data, at, pairs);
  }
  const int64_t slot = call.slots[n];
  if (is_query || slot < 0) return;
  if (is_value) {
    StorePairs(call.values + slot * call.values_stride + int64_t{head - rotated} * 2 * half, at, pairs);
  } else {
    StorePairs(call.keys + slot * call.keys_stride + int64_t{head - call.heads} * 2 * half, at, pairs);
  }
}

template <typename T>
cudaError_t Rotate(const RotateArguments& a, cudaStream_t stream) {
  const int32_t units = a.heads + 2 * a.kv_heads;
  const int32_t half = static_cast<int32_t>(a.qkv.cols / units / 2);
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>(a.qkv.rows), (units + kWarps - 1) / kWarps),
                             .block = dim3(kWarps * 32),
                             .stream = stream,
                             .overlap = true};
  const RotateCall<T> call = {.qkv = static_cast<T*>(a.qkv.data),
                              .stride = a.qkv.stride,
                              .keys = static_cast<T*>(a.cache.keys.data),
                              .keys_stride = a.cache.keys.stride,
                              .values = static_cast<T*>(a.cache.values.data),
                              .values_stride = a.cache.values.stride,
                              .angles = a.angles,
                              .slots = a.slots,
                              .q_gain = a.q_gain,
                              .k_gain = a.k_gain,
                              .float_gain = a.float_gain,
                              .norm_values = a.norm_values,
                              .epsilon = a.epsilon,
                              .heads = a.heads,
                              .kv_heads = a.kv_heads,
                              .turned = static_cast<int32_t>(a.pairs.pairs),
                              .places = {half, static_cast<int32_t>(a.pairs.distance)}};
  if (half <= 64) return Launch(RotateAndCacheKernel<T, 1>, shape, call);
  if (half <= 128) return Launch(RotateAndCacheKernel<T, 2>, shape, call);
  if (half <= 256) return Launch(RotateAndCacheKernel<T, 4>, shape, call);
  return cudaErrorInvalidValue;  // Larger than kRotatedHeadSizeMax.
}

}  // namespace

cudaError_t LaunchRopeAngles(const int32_t* positions, int32_t rows, double theta, const RopePairs& pairs,
                             DType rounding, float2* angles, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  if (pairs.pairs > kRotatedHeadSizeMax / 2) return cudaErrorInvalidValue;
  const int32_t count = static_cast<int32_t>(pairs.pairs);
  RopeFrequencies frequencies = {};
  for (int32_t i = 0; i < count; ++i) frequencies.values[i] = RopeFrequency(theta, i, pairs);
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned int>(rows)), .block = dim3(64), .stream = stream, .overlap = true};
  return Launch(RopeAnglesKernel, shape, positions, frequencies, count, rounding == DType::kBf16, angles);
}

cudaError_t LaunchRotateAndCache(const RotateArguments& arguments, cudaStream_t stream) {
  if (arguments.qkv.rows == 0) return cudaSuccess;
  return arguments.qkv.dtype == DType::kF32 ? Rotate<float>(arguments, stream)
                                            : Rotate<__nv_bfloat16>(arguments, stream);
}

}  // namespace quicksilver
