#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/check.h"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/attention_plan.h"

namespace quicksilver {
namespace {

using attention::Arguments;
using attention::Divisor;
using attention::kJobsMax;
using attention::kSegmentsMax;
using attention::kTileKeys;
using attention::Plan;
using attention::Variant;

constexpr float kBinaryUnit = 1.44269504088896341f;  // 1 / ln 2
constexpr int64_t kPartialRowsMax = 1 << 22;         // The plan adds up 256 such numbers in 32 bits.

/// Hands out parts of a workspace, each aligned to 256 bytes.
class Carver {
 public:
  explicit Carver(unsigned char* memory) : memory_(memory) {}

  template <typename T>
  T* Take(size_t count) {
    T* const part = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return part;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* memory_;
  size_t used_ = 0;
};

Plan Carve(Carver& carver) {
  Plan plan;
  plan.counts = carver.Take<attention::Counts>(1);
  plan.jobs = carver.Take<attention::Job>(kJobsMax);
  plan.merges = carver.Take<attention::Merge>(kJobsMax);
  plan.first_tiles = carver.Take<int32_t>(kSegmentsMax);
  plan.costs_before = carver.Take<int32_t>(kJobsMax);
  return plan;
}

attention::Rows RowsOf(ConstMatrix m) {
  const int64_t bytes = m.stride * static_cast<int64_t>(ElementBytes(m.dtype));
  CHECK(bytes >= 0 && bytes <= std::numeric_limits<uint32_t>::max());
  return {m.data, static_cast<uint32_t>(bytes)};
}

bool Aligned(const attention::Rows& rows, uint32_t bytes) {
  return reinterpret_cast<uintptr_t>(rows.data) % bytes == 0 && rows.stride_bytes % bytes == 0;
}

Arguments ArgumentsOf(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads, const KvLayer& cache,
                      Matrix out) {
  Arguments arguments;
  arguments.q = RowsOf(q);
  arguments.keys = RowsOf(cache.keys);
  arguments.values = RowsOf(cache.values);
  const attention::Rows out_rows = RowsOf(out);
  arguments.out = out.data;
  arguments.out_stride_bytes = out_rows.stride_bytes;
  arguments.page_table = layout.page_table;
  arguments.page_size = Divisor::Of(layout.page_size);
  arguments.group = Divisor::Of(heads / kv_heads);
  arguments.kv_heads = Divisor::Of(kv_heads);
  arguments.head_size = static_cast<int32_t>(q.cols / heads);
  arguments.aligned_keys = Aligned(arguments.keys, 16) && Aligned(arguments.values, 16);
  arguments.aligned_rows = Aligned(arguments.q, 4) && Aligned(out_rows, 4);
  return arguments;
}

/// At most so many query tiles has the step.
int64_t TilesMax(const StepLayout& layout, int32_t group, int32_t tile_queries) {
  return int64_t{layout.rows} * group / tile_queries + layout.segments_count;
}

}  // namespace

size_t CudaAttention::WorkspaceBytes(const CudaAttentionOptions& options) {
  Carver carver(nullptr);
  for (int32_t i = 0; i < kPlans; ++i) Carve(carver);
  return carver.used() + options.partial_bytes;
}

CudaAttention::CudaAttention(const CudaAttentionOptions& options, void* workspace)
    : options_(options), workspace_(static_cast<unsigned char*>(workspace)) {
  CHECK(options.multiprocessors > 0 && reinterpret_cast<uintptr_t>(workspace) % 256 == 0);
}

int32_t CudaAttention::PartialRows(int32_t head_size) const {
  const size_t row_bytes = static_cast<size_t>(attention::PartialStride(head_size) + 2) * sizeof(float);
  const size_t gap = 256;  // Between weights and sums.
  const size_t rows = options_.partial_bytes < gap ? 0 : (options_.partial_bytes - gap) / row_bytes;
  return static_cast<int32_t>(std::min(static_cast<int64_t>(rows), kPartialRowsMax));
}

Plan CudaAttention::PlanFor(int32_t place, int32_t head_size) const {
  Carver carver(workspace_);
  Plan plan;
  for (int32_t i = 0; i < kPlans; ++i) {
    const Plan other = Carve(carver);
    if (i == place) plan = other;
  }
  const size_t rows = static_cast<size_t>(PartialRows(head_size));
  plan.partial_weights = carver.Take<float>(rows * 2);
  plan.partial_sums = carver.Take<float>(rows * static_cast<size_t>(attention::PartialStride(head_size)));
  return plan;
}

int32_t CudaAttention::PlaceOf(const Planned& wanted) const {
  for (int32_t i = 0; i < kPlans; ++i) {
    if (planned_[i] == wanted) return i;
  }
  return -1;
}

cudaError_t CudaAttention::MakePlan(cudaStream_t stream, const StepLayout& layout, const Planned& wanted) {
  const int32_t group = wanted.heads / wanted.kv_heads;
  CHECK(layout.segments_count <= kSegmentsMax && TilesMax(layout, group, wanted.tile_queries) <= kJobsMax);
  const cudaError_t error = attention::LaunchPlan(stream,
                                                  {.segments = layout.segments,
                                                   .segments_count = layout.segments_count,
                                                   .group = Divisor::Of(group),
                                                   .window = wanted.window,
                                                   .kv_heads = wanted.kv_heads,
                                                   .tile_queries = wanted.tile_queries,
                                                   .blocks = wanted.blocks,
                                                   .partial_rows_max = PartialRows(wanted.head_size),
                                                   .split = options_.split},
                                                  PlanFor(next_place_, wanted.head_size));
  if (error != cudaSuccess) return error;
  planned_[next_place_] = wanted;
  next_place_ = (next_place_ + 1) % kPlans;
  return cudaSuccess;
}

cudaError_t CudaAttention::Run(cudaStream_t stream, const StepLayout& layout, ConstMatrix q, int32_t heads,
                               int32_t kv_heads, const AttentionRule& rule, const KvLayer& cache, Matrix out) {
  CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && q.cols % heads == 0 && q.cols == out.cols);
  CHECK(q.rows == layout.rows && out.rows == layout.rows && layout.page_size > 0);
  CHECK(q.dtype == out.dtype && q.dtype == cache.keys.dtype && q.dtype == cache.values.dtype);
  if (layout.rows == 0 || layout.segments_count == 0) return cudaSuccess;
  const int32_t head_size = static_cast<int32_t>(q.cols / heads), group = heads / kv_heads;
  CHECK(head_size <= attention::kHeadSizeMax && cache.keys.cols == int64_t{kv_heads} * head_size &&
        cache.values.cols == cache.keys.cols);

  Variant variant;
  if (q.dtype == DType::kBf16) variant = attention::TensorCoreVariant(head_size, int64_t{layout.rows_max} * group);
  const bool tensor_core = variant.launch != nullptr;
  if (!tensor_core) variant = attention::FloatVariant(q.dtype, head_size);

  const int32_t room = options_.multiprocessors * variant.blocks_per_multiprocessor;
  // A plan that has only now been enqueued has to be waited for.
  const Planned wanted = {heads, kv_heads, head_size, variant.tile_queries, room, rule.window};
  const bool early_keys = PlaceOf(wanted) >= 0;
  if (!early_keys) {
    if (const cudaError_t error = MakePlan(stream, layout, wanted); error != cudaSuccess) return error;
  }

  Arguments arguments = ArgumentsOf(layout, q, heads, kv_heads, cache, out);
  arguments.plan = PlanFor(PlaceOf(wanted), head_size);
  arguments.window = rule.window;
  arguments.early_keys = early_keys;
  const float scale = rule.scale != 0.0f ? rule.scale : 1.0f / std::sqrt(static_cast<float>(head_size));
  arguments.scale = tensor_core ? kBinaryUnit * scale : scale;
  const int32_t chunks_max = attention::ChunkOf(std::max(layout.keys_max, 1) - 1) + 1;
  const int64_t items_max = TilesMax(layout, group, variant.tile_queries) * kv_heads * chunks_max;
  const cudaError_t launched =
      variant.launch(stream, static_cast<int32_t>(std::min<int64_t>(room, items_max)), arguments);
  if (launched != cudaSuccess || chunks_max == 1 || options_.split == attention::Split::kNever) return launched;
  return attention::LaunchMerge(stream, q.dtype, tensor_core, int64_t{layout.rows} * heads, options_.multiprocessors,
                                arguments);
}

}  // namespace quicksilver
