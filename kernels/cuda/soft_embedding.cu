#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.h"
#include "kernels/cuda/soft_embedding.h"

namespace quicksilver {
namespace {

constexpr size_t kAlignment = 256;
constexpr int64_t kTileUnit = 1024;  // Of columns: LogitsProduct's.
constexpr int kThreads = 256;
constexpr int kSide = 16;             // A block of kSide x kSide threads …
constexpr int kEach = 4;              // … of kEach x kEach sums …
constexpr int kSpan = kSide * kEach;  // … covers so many rows and columns of the output, …
constexpr int kDepth = 16;            // … so many ids at a time.

int64_t RoundUp(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

int64_t TileColumns(const SoftEmbedArguments& a, size_t tile_bytes) {
  const int64_t rows = std::max<int64_t>({a.rows, a.batch.count, 1});
  const int64_t fitting = static_cast<int64_t>(tile_bytes) / (rows * static_cast<int64_t>(sizeof(float)));
  return std::clamp<int64_t>(fitting / kTileUnit * kTileUnit, kTileUnit,
                             std::max(RoundUp(a.columns, kTileUnit), kTileUnit));
}

/// Where the workspace begins to hold what.
struct Layout {
  size_t shares = 0;
  size_t sums = 0;
  size_t end = 0;
};

Layout LayOut(const SoftEmbedArguments& a, int64_t tile_columns) {
  const auto after = [](size_t begin, int64_t floats) {
    return static_cast<size_t>(RoundUp(static_cast<int64_t>(begin + floats * sizeof(float)), kAlignment));
  };
  Layout layout;
  layout.shares = after(0, a.rows * tile_columns);
  layout.sums = after(layout.shares, a.batch.count * tile_columns);
  layout.end = after(layout.sums, a.batch.count * a.out.cols);
  return layout;
}

struct SharesCall {
  const float* logits;
  int64_t stride;
  int32_t columns;
  int32_t first_id;
  float soft_cap;
  SoftEmbedBatch batch;
  float* shares;  ///< [batch.count, stride]
};

__device__ __forceinline__ float ShareOf(float z, int32_t id, float soft_cap, const TemperedSoftmax& softmax) {
  if (!(softmax.temperature > 0.0f)) return id == softmax.best_id ? 1.0f : 0.0f;
  if (soft_cap > 0.0f) z = __fmul_rn(soft_cap, tanhf(__fdiv_rn(z, soft_cap)));
  return expf(__fsub_rn(__fdiv_rn(z, softmax.temperature), softmax.log_sum_exp));
}

// A request is blockIdx.x; blocks along y share the tile's columns.
template <typename T>
__global__ void __launch_bounds__(kThreads) SharesKernel(SharesCall call) {
  DependencyWait();
  DependencyLaunch();
  const int32_t i = static_cast<int32_t>(blockIdx.x);
  const int32_t column = static_cast<int32_t>(blockIdx.y) * kThreads + static_cast<int32_t>(threadIdx.x);
  TemperedSoftmax* const softmax = reinterpret_cast<TemperedSoftmax*>(SharedMemory());
  if (threadIdx.x == 0) *softmax = TemperedSoftmaxOf(call.batch, i);
  __syncthreads();
  if (column >= call.columns) return;
  const int32_t row = call.batch.requests[i].row;
  float share = 0.0f;
  if (row >= 0) {
    share = ShareOf(call.logits[row * call.stride + column], call.first_id + column, call.soft_cap, *softmax);
  }
  call.shares[i * call.stride + column] = RoundedTo<T>(share);
}

template <typename Table, typename Out>
struct AddTableCall {
  const float* shares;
  int64_t shares_stride;
  const Table* table;
  int64_t table_stride;
  int64_t ids;
  float* sums;  ///< [rows, cols]
  int64_t rows;
  int64_t cols;
  bool first;  ///< There are no sums yet.
  Out* out;    ///< Null: more ids follow.
  int64_t out_stride;
};

/// What a block works on: kDepth ids of its rows and of its columns.
struct Stage {
  float shares[kDepth][kSpan];
  float table[kDepth][kSpan];
};

template <typename Table, typename Out>
__device__ __forceinline__ void Fill(const AddTableCall<Table, Out>& call, int64_t row, int64_t col, int64_t id,
                                     Stage& stage) {
  for (int i = static_cast<int>(threadIdx.x); i < kDepth * kSpan; i += kThreads) {
    const int64_t share_id = id + i % kDepth, r = row + i / kDepth;
    const bool has_share = share_id < call.ids && r < call.rows;
    stage.shares[i % kDepth][i / kDepth] = has_share ? call.shares[r * call.shares_stride + share_id] : 0.0f;
    const int64_t table_id = id + i / kSpan, c = col + i % kSpan;
    const bool has_entry = table_id < call.ids && c < call.cols;
    stage.table[i / kSpan][i % kSpan] = has_entry ? ToFloat(call.table[table_id * call.table_stride + c]) : 0.0f;
  }
}

// blockIdx.x: kSpan columns, blockIdx.y: kSpan rows.
template <typename Table, typename Out>
__global__ void __launch_bounds__(kThreads) AddTableKernel(AddTableCall<Table, Out> call) {
  DependencyWait();
  DependencyLaunch();
  Stage& stage = *reinterpret_cast<Stage*>(SharedMemory());
  const int64_t row = int64_t{blockIdx.y} * kSpan, col = int64_t{blockIdx.x} * kSpan;
  const int y = static_cast<int>(threadIdx.x) / kSide, x = static_cast<int>(threadIdx.x) % kSide;
  float sums[kEach][kEach];
  const auto exists = [&](int i, int j) { return row + y + i * kSide < call.rows && col + x + j * kSide < call.cols; };
  const auto place = [&](int i, int j) { return (row + y + i * kSide) * call.cols + col + x + j * kSide; };
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) sums[i][j] = call.first || !exists(i, j) ? 0.0f : call.sums[place(i, j)];
  }
  for (int64_t id = 0; id < call.ids; id += kDepth) {
    Fill(call, row, col, id, stage);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          sums[i][j] = __fmaf_rn(stage.shares[d][y + i * kSide], stage.table[d][x + j * kSide], sums[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (!exists(i, j)) continue;
      if (call.out == nullptr) {
        call.sums[place(i, j)] = sums[i][j];
      } else {
        call.out[(row + y + i * kSide) * call.out_stride + col + x + j * kSide] = FromFloat<Out>(sums[i][j]);
      }
    }
  }
}

/// Ids [first, first + ids) of a shard that has `total`.
struct Run {
  int64_t first = 0;
  int64_t ids = 0;
  int64_t total = 0;
};

template <typename Table, typename Out>
cudaError_t AddTable(const SoftEmbedArguments& a, const Run& run, const float* shares, int64_t stride, float* sums,
                     cudaStream_t stream) {
  const AddTableCall<Table, Out> call = {
      .shares = shares,
      .shares_stride = stride,
      .table = static_cast<const Table*>(a.table.data) + run.first * a.table.stride,
      .table_stride = a.table.stride,
      .ids = run.ids,
      .sums = sums,
      .rows = a.out.rows,
      .cols = a.out.cols,
      .first = run.first == 0,
      .out = run.first + run.ids >= run.total ? static_cast<Out*>(a.out.data) : nullptr,
      .out_stride = a.out.stride};
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>((a.out.cols + kSpan - 1) / kSpan),
                                          static_cast<unsigned int>((a.out.rows + kSpan - 1) / kSpan)),
                             .block = dim3(kThreads),
                             .shared_bytes = sizeof(Stage),
                             .stream = stream,
                             .overlap = true};
  return Launch(AddTableKernel<Table, Out>, shape, call);
}

cudaError_t AddTable(const SoftEmbedArguments& a, const Run& run, const float* shares, int64_t stride, float* sums,
                     cudaStream_t stream) {
  const bool narrow_out = a.out.dtype == DType::kBf16;
  if (a.table.dtype == DType::kF32) {
    return narrow_out ? AddTable<float, __nv_bfloat16>(a, run, shares, stride, sums, stream)
                      : AddTable<float, float>(a, run, shares, stride, sums, stream);
  }
  return narrow_out ? AddTable<__nv_bfloat16, __nv_bfloat16>(a, run, shares, stride, sums, stream)
                    : AddTable<__nv_bfloat16, float>(a, run, shares, stride, sums, stream);
}

cudaError_t TakeShares(const SharesCall& call, DType dtype, cudaStream_t stream) {
  const LaunchShape shape = {.grid = dim3(static_cast<unsigned int>(call.batch.count),
                                          static_cast<unsigned int>((call.columns + kThreads - 1) / kThreads)),
                             .block = dim3(kThreads),
                             .shared_bytes = sizeof(TemperedSoftmax),
                             .stream = stream,
                             .overlap = true};
  return dtype == DType::kF32 ? Launch(SharesKernel<float>, shape, call)
                              : Launch(SharesKernel<__nv_bfloat16>, shape, call);
}

}  // namespace

size_t SoftEmbedWorkspaceBytes(const SoftEmbedArguments& sizes, size_t tile_bytes) {
  return LayOut(sizes, TileColumns(sizes, tile_bytes)).end;
}

cudaError_t RunSoftEmbed(const SoftEmbedArguments& arguments, const LogitsProduct& product, void* workspace,
                         cudaStream_t stream, size_t tile_bytes) {
  if (arguments.batch.count == 0) return cudaSuccess;
  const int64_t tile_columns = TileColumns(arguments, tile_bytes);
  const Layout layout = LayOut(arguments, tile_columns);
  char* const base = static_cast<char*>(workspace);
  float* const shares = reinterpret_cast<float*>(base + layout.shares);
  float* const sums = reinterpret_cast<float*>(base + layout.sums);
  Run run;
  run.total = std::clamp<int64_t>(int64_t{arguments.shard.vocabulary} - arguments.shard.first_id, 0,
                                  std::min(arguments.columns, arguments.table.rows));
  for (; run.first == 0 || run.first < run.total; run.first += tile_columns) {
    run.ids = std::min(tile_columns, run.total - run.first);
    cudaError_t error = cudaSuccess;
    if (run.ids > 0) {
      error = product(run.first, {base, arguments.rows, run.ids, tile_columns, DType::kF32});
      const SharesCall call = {.logits = reinterpret_cast<const float*>(base),
                               .stride = tile_columns,
                               .columns = static_cast<int32_t>(run.ids),
                               .first_id = arguments.shard.first_id + static_cast<int32_t>(run.first),
                               .soft_cap = arguments.shard.soft_cap,
                               .batch = arguments.batch,
                               .shares = shares};
      if (error == cudaSuccess) error = TakeShares(call, arguments.out.dtype, stream);
    }
    if (error == cudaSuccess) error = AddTable(arguments, run, shares, tile_columns, sums, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace quicksilver
