#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/support/cuda_twin/execution.h"

// What a kernel finds without an include: the built-in variables, synchronisation, warp and atomic functions,
// intrinsics.

// Set whenever another thread goes on.
inline constinit thread_local uint3 threadIdx{};
inline constinit thread_local uint3 blockIdx{};
inline constinit thread_local dim3 blockDim;
inline constinit thread_local dim3 gridDim;
inline constexpr int warpSize = 32;

inline void __syncthreads() { quicksilver::cuda_twin::JoinBlock(false); }
inline int __syncthreads_count(int predicate) { return quicksilver::cuda_twin::JoinBlock(predicate != 0); }
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) != 0 ? 1 : 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(predicate == 0) == 0 ? 1 : 0; }
inline void __syncwarp(unsigned int mask = 0xFFFFFFFFu) {
  using namespace quicksilver::cuda_twin;
  JoinWarp(Rendezvous::kSyncWarp, mask, 0, nullptr, nullptr);
}

namespace quicksilver::cuda_twin {

template <typename T>
T ShuffleValue(Rendezvous kind, uint32_t mask, T value, int source, int width) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = WarpShuffle(kind, mask, bits, source, width);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace quicksilver::cuda_twin

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source, int width = 32) {
  using namespace quicksilver::cuda_twin;
  return ShuffleValue(Rendezvous::kShuffle, mask, value, source, width);
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32) {
  using namespace quicksilver::cuda_twin;
  return ShuffleValue(Rendezvous::kShuffleXor, mask, value, lane_mask, width);
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  using namespace quicksilver::cuda_twin;
  return ShuffleValue(Rendezvous::kShuffleUp, mask, value, static_cast<int>(delta), width);
}
template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32) {
  using namespace quicksilver::cuda_twin;
  return ShuffleValue(Rendezvous::kShuffleDown, mask, value, static_cast<int>(delta), width);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate) {
  return quicksilver::cuda_twin::WarpBallot(mask, predicate != 0);
}
inline int __any_sync(unsigned int mask, int predicate) { return __ballot_sync(mask, predicate) != 0 ? 1 : 0; }
inline int __all_sync(unsigned int mask, int predicate) { return __ballot_sync(mask, predicate) == mask ? 1 : 0; }

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned int) { quicksilver::cuda_twin::Pause(); }
[[noreturn]] inline void __trap() { quicksilver::cuda_twin::KernelError("__trap()"); }

// Atomic functions return the old value.

inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned int atomicAdd(unsigned int* p, unsigned int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
inline int atomicSub(int* p, int v) { return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED); }
inline unsigned int atomicSub(unsigned int* p, unsigned int v) { return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED); }
inline int atomicOr(int* p, int v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
inline unsigned int atomicOr(unsigned int* p, unsigned int v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
inline int atomicAnd(int* p, int v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }
inline unsigned int atomicAnd(unsigned int* p, unsigned int v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }
inline int atomicExch(int* p, int v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }
inline unsigned int atomicExch(unsigned int* p, unsigned int v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }
template <typename T>
T TwinCompareAndSwap(T* p, T expected, T desired) {
  __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
inline int atomicCAS(int* p, int expected, int desired) { return TwinCompareAndSwap(p, expected, desired); }
inline unsigned int atomicCAS(unsigned int* p, unsigned int expected, unsigned int desired) {
  return TwinCompareAndSwap(p, expected, desired);
}
inline unsigned long long atomicCAS(unsigned long long* p, unsigned long long expected, unsigned long long desired) {
  return TwinCompareAndSwap(p, expected, desired);
}
template <typename T, typename Choose>
T TwinAtomicUpdate(T* p, Choose choose) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, choose(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
inline int atomicMax(int* p, int v) {
  return TwinAtomicUpdate(p, [v](int old) { return old < v ? v : old; });
}
inline unsigned int atomicMax(unsigned int* p, unsigned int v) {
  return TwinAtomicUpdate(p, [v](unsigned int old) { return old < v ? v : old; });
}
inline unsigned long long atomicMax(unsigned long long* p, unsigned long long v) {
  return TwinAtomicUpdate(p, [v](unsigned long long old) { return old < v ? v : old; });
}
inline int atomicMin(int* p, int v) {
  return TwinAtomicUpdate(p, [v](int old) { return v < old ? v : old; });
}
inline unsigned int atomicMin(unsigned int* p, unsigned int v) {
  return TwinAtomicUpdate(p, [v](unsigned int old) { return v < old ? v : old; });
}

// Loads and stores with cache hints.

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcv(const T* p) {
  return *static_cast<const volatile T*>(p);
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}

// Bits.

inline unsigned int __float_as_uint(float v) { return std::bit_cast<unsigned int>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(unsigned int v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline int __popc(unsigned int v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned int>(v)); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((uint64_t{a} * b) >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }

// Arithmetic with a stated rounding. What is approximate on the device (__expf, __frcp_rn is not) is exact here.

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return __frsqrt_rn(a); }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned int v) { return static_cast<float>(v); }
inline int __float2int_rn(float v) { return static_cast<int>(std::nearbyint(v)); }
inline int __float2int_rd(float v) { return static_cast<int>(std::floor(v)); }
inline int __float2int_rz(float v) { return static_cast<int>(v); }
inline float __double2float_rn(double v) { return static_cast<float>(v); }

// glibc declares functions of these names without defining them.
#define __expf(x) (::std::exp(static_cast<float>(x)))
#define __exp10f(x) (::std::pow(10.0f, static_cast<float>(x)))
#define __logf(x) (::std::log(static_cast<float>(x)))
#define __log2f(x) (::std::log2(static_cast<float>(x)))
#define __powf(x, y) (::std::pow(static_cast<float>(x), static_cast<float>(y)))
#define __sinf(x) (::std::sin(static_cast<float>(x)))
#define __cosf(x) (::std::cos(static_cast<float>(x)))
inline void __sincosf(float x, float* sine, float* cosine) {
  *sine = std::sin(x);
  *cosine = std::cos(x);
}

#define QS_TWIN_MIN_MAX(type)                               \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
QS_TWIN_MIN_MAX(int)
QS_TWIN_MIN_MAX(unsigned int)
QS_TWIN_MIN_MAX(long)
QS_TWIN_MIN_MAX(unsigned long)
QS_TWIN_MIN_MAX(long long)
QS_TWIN_MIN_MAX(unsigned long long)
#undef QS_TWIN_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
