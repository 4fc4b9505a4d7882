#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/row_kernels.h"

namespace quicksilver {
namespace {

constexpr int kNormThreadsMax = 512;
constexpr int kThreads = 128;  // Of the kernels that move elements one by one.

/// Elements that a thread handles at a time.
template <typename T>
inline constexpr int kRun = 16 / sizeof(T);

template <typename T>
struct Rows {
  explicit Rows(const Matrix& m) : data(static_cast<T*>(m.data)), stride(m.stride) {}
  __device__ __forceinline__ T* at(int64_t row, int64_t col) const { return data + row * stride + col; }
  T* data;
  int64_t stride;
};

template <typename T>
struct ConstRows {
  explicit ConstRows(const ConstMatrix& m) : data(static_cast<const T*>(m.data)), stride(m.stride) {}
  __device__ __forceinline__ const T* at(int64_t row, int64_t col) const { return data + row * stride + col; }
  const T* data;
  int64_t stride;
};

/// A row is blockIdx.x; blocks along y share its columns.
LaunchShape Elementwise(int64_t rows, int64_t cols, int run, cudaStream_t stream) {
  const int64_t blocks = (cols + int64_t{kThreads} * run - 1) / (int64_t{kThreads} * run);
  return {.grid = dim3(static_cast<unsigned int>(rows), static_cast<unsigned int>(blocks)),
          .block = dim3(kThreads),
          .stream = stream,
          .overlap = true};
}

/// The first column of this thread.
template <int kRunOfThread>
__device__ __forceinline__ int64_t FirstColumn() {
  return (int64_t{blockIdx.y} * kThreads + threadIdx.x) * kRunOfThread;
}

template <typename From, typename To>
__global__ void __launch_bounds__(kThreads) LookUpKernel(const int32_t* ids, ConstRows<From> table, int64_t table_rows,
                                                         int64_t first_id, int64_t cols, Rows<To> out) {
  DependencyWait();
  DependencyLaunch();
  const int64_t r = blockIdx.x, c = FirstColumn<kRun<To>>();
  if (c >= cols) return;
  const int64_t row = int64_t{ids[r]} - first_id;
  float v[kRun<To>] = {};
  if (row >= 0 && row < table_rows) LoadRun(table.at(row, c), cols - c, v);
  StoreRun(out.at(r, c), cols - c, v);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) AddBiasKernel(const float* bias, int64_t cols, Rows<T> x) {
  DependencyWait();
  DependencyLaunch();
  const int64_t n = blockIdx.x, c = FirstColumn<kRun<T>>();
  if (c >= cols) return;
  float v[kRun<T>], b[kRun<T>];
  LoadRun(x.at(n, c), cols - c, v);
  LoadRun(bias + c, cols - c, b);
#pragma unroll
  for (int i = 0; i < kRun<T>; ++i) v[i] = __fadd_rn(v[i], b[i]);
  StoreRun(x.at(n, c), cols - c, v);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ScatterKernel(ConstRows<T> x, const int32_t* rows, int64_t cols, Rows<T> out) {
  DependencyWait();
  DependencyLaunch();
  const int64_t r = blockIdx.x, c = FirstColumn<kRun<T>>();
  if (c >= cols || rows[r] < 0) return;
  float v[kRun<T>];
  LoadRun(x.at(r, c), cols - c, v);
  StoreRun(out.at(rows[r], c), cols - c, v);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    GatedMulKernel(Activation activation, ConstRows<T> gate_up, int64_t cols, Rows<T> out) {
  DependencyWait();
  DependencyLaunch();
  const int64_t n = blockIdx.x, c = FirstColumn<kRun<T>>();
  if (c >= cols) return;
  float gate[kRun<T>], up[kRun<T>];
  LoadRun(gate_up.at(n, c), cols - c, gate);
  LoadRun(gate_up.at(n, cols + c), cols - c, up);
#pragma unroll
  for (int i = 0; i < kRun<T>; ++i) {
    gate[i] = __fmul_rn(Activated(activation, gate[i]), up[i]);
  }
  StoreRun(out.at(n, c), cols - c, gate);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) ScaleKernel(const float* factor, int64_t cols, Rows<T> x) {
  DependencyWait();
  DependencyLaunch();
  const int64_t n = blockIdx.x, c = FirstColumn<kRun<T>>();
  if (c >= cols) return;
  float v[kRun<T>];
  LoadRun(x.at(n, c), cols - c, v);
#pragma unroll
  for (int i = 0; i < kRun<T>; ++i) v[i] = __fmul_rn(v[i], *factor);
  StoreRun(x.at(n, c), cols - c, v);
}

enum class NormKind {
  kPlain,   ///< out = norm(x)
  kSum,     ///< x += y, out = norm(x), in the rows that are chosen.
  kAddend,  ///< x += norm(y)
};

template <typename T>
struct NormCall {
  ConstRows<T> y;
  const int32_t* rows;  ///< Null: every row is chosen. Else those that are not negative.
  NormGain gain;
  float epsilon;
  int64_t cols;
  Rows<T> x;
  Rows<T> out;
};

template <typename T, int kRuns>
__device__ __forceinline__ void NormRuns(const NormGain& gain, float scale, const float (&gains)[kRuns][kRun<T>],
                                         float (&v)[kRuns][kRun<T>]) {
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
#pragma unroll
    for (int i = 0; i < kRun<T>; ++i) {
      const float normed = __fmul_rn(v[k][i], scale);
      v[k][i] = __fmul_rn(gain.in_float ? normed : RoundedTo<T>(normed), gains[k][i]);
    }
  }
}

// One block a row. A thread holds kRuns runs of it, blockDim.x runs apart.
template <typename T, int kRuns, NormKind kKind>
__global__ void __launch_bounds__(kNormThreadsMax) RmsNormKernel(NormCall<T> call) {
  const int64_t n = blockIdx.x;
  float gains[kRuns][kRun<T>], v[kRuns][kRun<T>];
  const auto column = [](int k) { return (int64_t{k} * blockDim.x + threadIdx.x) * kRun<T>; };
  // No kernel writes a gain, so it may be read before the kernels ahead are done.
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
#pragma unroll
    for (int i = 0; i < kRun<T>; ++i) gains[k][i] = 1.0f;
    if (call.gain.values != nullptr) LoadRun(call.gain.values + column(k), call.cols - column(k), gains[k]);
  }
  DependencyWait();
  DependencyLaunch();
  if (call.rows != nullptr && call.rows[n] < 0) return;  // The whole block.
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
    const T* const from = kKind == NormKind::kAddend ? call.y.at(n, column(k)) : call.x.at(n, column(k));
    LoadRun(from, call.cols - column(k), v[k]);
  }
  if constexpr (kKind == NormKind::kSum) {
#pragma unroll
    for (int k = 0; k < kRuns; ++k) {
      float other[kRun<T>];
      LoadRun(call.y.at(n, column(k)), call.cols - column(k), other);
#pragma unroll
      for (int i = 0; i < kRun<T>; ++i) v[k][i] = RoundedTo<T>(__fadd_rn(v[k][i], other[i]));
      StoreRun(call.x.at(n, column(k)), call.cols - column(k), v[k]);
    }
  }
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
#pragma unroll
    for (int i = 0; i < kRun<T>; ++i) squares = __fmaf_rn(v[k][i], v[k][i], squares);
  }
  const float sum = BlockSum(squares, reinterpret_cast<float*>(SharedMemory()));
  NormRuns<T>(call.gain, NormScale(sum, static_cast<float>(call.cols), call.epsilon), gains, v);
#pragma unroll
  for (int k = 0; k < kRuns; ++k) {
    if constexpr (kKind == NormKind::kAddend) {
      float other[kRun<T>];
      LoadRun(call.x.at(n, column(k)), call.cols - column(k), other);
#pragma unroll
      for (int i = 0; i < kRun<T>; ++i) v[k][i] = __fadd_rn(other[i], RoundedTo<T>(v[k][i]));
    }
    StoreRun(call.out.at(n, column(k)), call.cols - column(k), v[k]);
  }
}

struct NormArguments {
  ConstMatrix y = {};
  const int32_t* rows = nullptr;
  NormGain gain = nullptr;
  float epsilon = 0.0f;
  Matrix x;
  Matrix out;
};

template <typename T, NormKind kKind>
cudaError_t NormRowsOf(const NormArguments& a, cudaStream_t stream) {
  const int64_t runs = (a.x.cols + kRun<T> - 1) / kRun<T>;
  const int64_t threads = std::min<int64_t>((runs + 31) / 32 * 32, kNormThreadsMax);
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>(a.x.rows)),
                             .block = dim3(static_cast<unsigned int>(threads)),
                             .shared_bytes = kNormThreadsMax / 32 * sizeof(float),
                             .stream = stream,
                             .overlap = true};
  const NormCall<T> call = {ConstRows<T>(a.y), a.rows, a.gain, a.epsilon, a.x.cols, Rows<T>(a.x), Rows<T>(a.out)};
  const int64_t runs_of_thread = (runs + threads - 1) / threads;
  if (runs_of_thread <= 1) return Launch(RmsNormKernel<T, 1, kKind>, shape, call);
  if (runs_of_thread <= 2) return Launch(RmsNormKernel<T, 2, kKind>, shape, call);
  if (runs_of_thread <= 4) return Launch(RmsNormKernel<T, 4, kKind>, shape, call);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (runs_of_thread <= 8) return Launch(RmsNormKernel<T, 8, kKind>, shape, call);
  }
  return cudaErrorInvalidValue;  // Wider than kNormColumnsMax.
}

template <NormKind kKind>
cudaError_t NormRows(const NormArguments& a, cudaStream_t stream) {
  if (a.x.rows == 0) return cudaSuccess;
  return a.x.dtype == DType::kF32 ? NormRowsOf<float, kKind>(a, stream) : NormRowsOf<__nv_bfloat16, kKind>(a, stream);
}

}  // namespace

cudaError_t LaunchLookUp(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out, cudaStream_t stream) {
  if (out.rows == 0) return cudaSuccess;
  const LaunchShape shape =
      Elementwise(out.rows, out.cols, out.dtype == DType::kF32 ? kRun<float> : kRun<__nv_bfloat16>, stream);
  const auto launch = [&]<typename From, typename To>(
                          void (*kernel)(const int32_t*, ConstRows<From>, int64_t, int64_t, int64_t, Rows<To>)) {
    return Launch(kernel, shape, ids, ConstRows<From>(table), table.rows, first_id, out.cols, Rows<To>(out));
  };
  if (table.dtype == DType::kF32) {
    return out.dtype == DType::kF32 ? launch(LookUpKernel<float, float>) : launch(LookUpKernel<float, __nv_bfloat16>);
  }
  return out.dtype == DType::kF32 ? launch(LookUpKernel<__nv_bfloat16, float>)
                                  : launch(LookUpKernel<__nv_bfloat16, __nv_bfloat16>);
}

cudaError_t LaunchRmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out, cudaStream_t stream) {
  // Nothing is written to x.
  const Matrix in = {const_cast<void*>(x.data), x.rows, x.cols, x.stride, x.dtype};
  return NormRows<NormKind::kPlain>({.gain = gain, .epsilon = epsilon, .x = in, .out = out}, stream);
}

cudaError_t LaunchAddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out, cudaStream_t stream) {
  return NormRows<NormKind::kSum>({.y = y, .gain = gain, .epsilon = epsilon, .x = x, .out = out}, stream);
}

cudaError_t LaunchAddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x, cudaStream_t stream) {
  return NormRows<NormKind::kAddend>({.y = y, .gain = gain, .epsilon = epsilon, .x = x, .out = x}, stream);
}

cudaError_t LaunchAddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x, cudaStream_t stream) {
  return NormRows<NormKind::kSum>({.y = y, .rows = rows, .epsilon = epsilon, .x = x, .out = x}, stream);
}

cudaError_t LaunchScale(const float* factor, Matrix x, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  if (x.dtype == DType::kF32) {
    return Launch(ScaleKernel<float>, Elementwise(x.rows, x.cols, kRun<float>, stream), factor, x.cols, Rows<float>(x));
  }
  return Launch(ScaleKernel<__nv_bfloat16>, Elementwise(x.rows, x.cols, kRun<__nv_bfloat16>, stream), factor, x.cols,
                Rows<__nv_bfloat16>(x));
}

cudaError_t LaunchAddBias(const float* bias, Matrix x, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  if (x.dtype == DType::kF32) {
    return Launch(AddBiasKernel<float>, Elementwise(x.rows, x.cols, kRun<float>, stream), bias, x.cols, Rows<float>(x));
  }
  return Launch(AddBiasKernel<__nv_bfloat16>, Elementwise(x.rows, x.cols, kRun<__nv_bfloat16>, stream), bias, x.cols,
                Rows<__nv_bfloat16>(x));
}

cudaError_t LaunchScatter(ConstMatrix x, const int32_t* rows, Matrix out, cudaStream_t stream) {
  if (x.rows == 0) return cudaSuccess;
  if (x.dtype == DType::kF32) {
    return Launch(ScatterKernel<float>, Elementwise(x.rows, x.cols, kRun<float>, stream), ConstRows<float>(x), rows,
                  x.cols, Rows<float>(out));
  }
  return Launch(ScatterKernel<__nv_bfloat16>, Elementwise(x.rows, x.cols, kRun<__nv_bfloat16>, stream),
                ConstRows<__nv_bfloat16>(x), rows, x.cols, Rows<__nv_bfloat16>(out));
}

cudaError_t LaunchGatedMul(Activation activation, ConstMatrix gate_up, Matrix out, cudaStream_t stream) {
  if (out.rows == 0) return cudaSuccess;
  if (out.dtype == DType::kF32) {
    return Launch(GatedMulKernel<float>, Elementwise(out.rows, out.cols, kRun<float>, stream), activation,
                  ConstRows<float>(gate_up), out.cols, Rows<float>(out));
  }
  return Launch(GatedMulKernel<__nv_bfloat16>, Elementwise(out.rows, out.cols, kRun<__nv_bfloat16>, stream), activation,
                ConstRows<__nv_bfloat16>(gate_up), out.cols, Rows<__nv_bfloat16>(out));
}

}  // namespace quicksilver
