#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/candidate_kernel.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/host_blocks.h"
#include "kernels/cpu/host_matrix.h"
#include "kernels/cpu/host_memory.h"
#include "kernels/cpu/host_program.h"
#include "kernels/cpu/host_routing.h"
#include "kernels/cpu/moe.h"
#include "kernels/cpu/row_kernels.h"
#include "kernels/cpu/soft_embedding.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/workspace.h"

namespace quicksilver {
namespace {

/// Elements of a row-by-row operation below which waking other threads costs more.
constexpr int64_t kSharedElements = 1 << 17;

/// Rows [first, first + rows) of `m`.
template <typename M>
M RowBand(const M& m, int64_t first, int64_t rows) {
  M band = m;
  const size_t skipped = static_cast<size_t>(first * m.stride) * ElementBytes(m.dtype);
  if constexpr (std::is_same_v<M, Matrix>) {
    band.data = static_cast<char*>(m.data) + skipped;
  } else {
    band.data = static_cast<const char*>(m.data) + skipped;
  }
  band.rows = rows;
  return band;
}

bool SameShape(const ConstMatrix& a, const ConstMatrix& b) {
  return a.rows == b.rows && a.cols == b.cols && a.dtype == b.dtype;
}

/// Cosine and sine of every rotated pair of a head at positions [0, positions), made when a position is first met.
struct RopeTable {
  int64_t positions = 0;
  std::vector<float> cosines;  // [positions, pairs]
  std::vector<float> sines;
};

class CpuOps final : public Ops {
 public:
  CpuOps(DType activation, const CpuOpsOptions& options)
      : activation_(activation),
        memory_(options.memory_bytes_max),
        team_(options.threads),
        gemm_({.activation = activation, .tile_rows = options.tile_rows, .int8_layers = options.int8_layers}, memory_,
              team_),
        attention_(team_),
        candidates_(gemm_, team_),
        soft_embedder_(gemm_, team_),
        experts_(activation, gemm_, team_) {}

  std::string name() const override {
    return absl::StrCat("cpu-onednn-", gemm_.instruction_set(), "-rows", gemm_.tile_rows());
  }
  DType activation_dtype() const override { return activation_; }

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override {
    ASSIGN_OR_RETURN(void* const data, memory_.Allocate(bytes));
    return DeviceBuffer(this, data, bytes);
  }
  void Upload(const void* host, void* device, size_t bytes) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void Download(const void* device, void* host, size_t bytes) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }
  absl::Status Synchronize() override { return status_; }
  absl::Status status() const override { return status_; }
  absl::StatusOr<DeviceBuffer> AllocateShared(size_t bytes) override { return Allocate(bytes); }
  absl::Status Await(const uint32_t*, uint32_t, int32_t) override { return status_; }
  bool prefers_programs() const override { return false; }
  absl::StatusOr<std::unique_ptr<Program>> Record(const std::function<void()>& enqueue,
                                                  const int32_t* proceed) override {
    return std::make_unique<HostProgram>(enqueue, proceed);
  }
  void AdvanceBlocks(const BlockStep& step) override { AdvanceBlocksOnHost(step); }
  void BeginStep(const StepLayout&) override {}

  absl::StatusOr<std::unique_ptr<GemmWeight>> PrepareWeight(ConstMatrix host, WeightRole role) override {
    return gemm_.Prepare(host, role);
  }

  void Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) override;
  void RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) override;
  void AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) override;
  void AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) override;
  void Scale(const float* factor, Matrix x) override;
  void AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) override;
  void Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) override;
  void AddBias(const float* bias, Matrix x) override;
  void RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                      const KvLayer& cache, Matrix qkv) override;
  void Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads, const AttentionRule& rule,
                 const KvLayer& cache, Matrix out) override;
  void GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) override;
  void Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
             float* weights) override {
    RouteOnHost(layout, logits, rule, activation_, experts, weights);
  }
  absl::StatusOr<std::unique_ptr<ExpertWeights>> PrepareExperts(const ExpertShape& shape) override {
    return experts_.Prepare(shape);
  }
  void ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                 const float* expert_weights, int32_t k, bool add, Matrix out) override {
    Note(experts_.Run({x, weights, activation, experts, expert_weights, k, add, out}));
  }
  void GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) override;
  void ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) override;
  void SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                 const SoftEmbedBatch& batch, Matrix out) override;
  void Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                  const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) override;

 private:
  void Free(void* data, size_t bytes) override { memory_.Free(data, bytes); }
  void Note(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

  /// Calls body(first, count) on bands that make up [0, rows).
  template <typename Body>
  void ForBands(int64_t rows, int64_t cols, Body body) {
    const int64_t bands = rows * cols >= kSharedElements ? std::min<int64_t>(rows, team_.threads()) : 1;
    team_.Run(bands, bands > 1, [&](int64_t band, int32_t) {
      const int64_t first = rows * band / bands;
      body(first, rows * (band + 1) / bands - first);
    });
  }

  void NormHeads(NormGain gain, float epsilon, int32_t heads, Matrix x);
  void Rotate(const StepLayout& layout, const RopeParameters& rope, int32_t heads, Matrix x);
  void WriteKv(const StepLayout& layout, ConstMatrix k, ConstMatrix v, const KvLayer& cache);
  const RopeTable& TableFor(const RopeParameters& rope, const RopePairs& pairs, int64_t positions);
  void PackTiles(ConstMatrix x);

  DType activation_;
  HostMemory memory_;
  ThreadTeam team_;
  TiledGemm gemm_;
  PagedAttention attention_;
  CandidateReducer candidates_;
  SoftEmbedder soft_embedder_;
  ExpertMixer experts_;
  absl::Status status_;
  // By theta, the pairs and their width, full precision.
  std::map<std::tuple<double, int64_t, int64_t, bool>, RopeTable> rope_tables_;
  Workspace<char> packed_rows_;
  std::vector<const void*> tiles_;
};

void CpuOps::Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) {
  CHECK(table.cols == out.cols);
  for (int64_t n = 0; n < out.rows; ++n) {
    const int64_t row = ids[n] - first_id;
    const Matrix to = RowBand(out, n, 1);
    if (row >= 0 && row < table.rows) {
      ConvertRows(RowBand(table, row, 1), to);
    } else {
      std::memset(to.data, 0, static_cast<size_t>(out.cols) * ElementBytes(out.dtype));
    }
  }
}

void CpuOps::RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) {
  CHECK(SameShape(x, out));
  ForBands(x.rows, x.cols, [&](int64_t first, int64_t count) {
    NormaliseRows(RowBand(x, first, count), 1, gain, epsilon, RowBand(out, first, count));
  });
}

void CpuOps::AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) {
  CHECK(SameShape(y, x) && SameShape(x, out));
  ForBands(x.rows, x.cols, [&](int64_t first, int64_t count) {
    const Matrix band = RowBand(x, first, count);
    AddRows(RowBand(y, first, count), band);
    NormaliseRows(band, 1, gain, epsilon, RowBand(out, first, count));
  });
}

void CpuOps::AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) {
  CHECK(SameShape(y, x));
  ForBands(x.rows, x.cols, [&](int64_t first, int64_t count) {
    AddNormalisedRows(RowBand(y, first, count), gain, epsilon, RowBand(x, first, count));
  });
}

void CpuOps::Scale(const float* factor, Matrix x) {
  ForBands(x.rows, x.cols, [&](int64_t first, int64_t count) { ScaleRows(*factor, RowBand(x, first, count)); });
}

void CpuOps::AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) {
  CHECK(SameShape(y, x));
  for (int64_t n = 0; n < x.rows; ++n) {
    if (rows[n] >= 0) AddRmsNorm(RowBand(y, n, 1), nullptr, epsilon, RowBand(x, n, 1), RowBand(x, n, 1));
  }
}

void CpuOps::NormHeads(NormGain gain, float epsilon, int32_t heads, Matrix x) {
  ForBands(x.rows, x.cols, [&](int64_t first, int64_t count) {
    const Matrix band = RowBand(x, first, count);
    NormaliseRows(band, heads, gain, epsilon, band);
  });
}

/// Points tiles_ at the rows of `x`, or at copies where tiles need another type, no gaps, or rows of zeros at the end.
void CpuOps::PackTiles(ConstMatrix x) {
  const int64_t tile_rows = gemm_.tile_rows();
  const bool usable = x.dtype == gemm_.compute_dtype() && x.stride == x.cols;
  const int64_t in_place = usable ? x.rows / tile_rows * tile_rows : 0;
  const int64_t packed = (x.rows - in_place + tile_rows - 1) / tile_rows * tile_rows;
  const size_t row_bytes = static_cast<size_t>(x.cols) * ElementBytes(gemm_.compute_dtype());
  char* to = packed_rows_.Get(static_cast<size_t>(packed) * row_bytes);
  const int64_t copied = x.rows - in_place;
  ConvertRows(RowBand(x, in_place, copied), {to, copied, x.cols, x.cols, gemm_.compute_dtype()});
  if (packed > copied) {
    std::memset(to + static_cast<size_t>(copied) * row_bytes, 0, static_cast<size_t>(packed - copied) * row_bytes);
  }
  tiles_.clear();
  for (int64_t first = 0; first < in_place; first += tile_rows) tiles_.push_back(RowBand(x, first, tile_rows).data);
  for (int64_t first = 0; first < packed; first += tile_rows) {
    tiles_.push_back(to + static_cast<size_t>(first) * row_bytes);
  }
}

void CpuOps::Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) {
  CHECK(x.cols == weight.in_features() && out.cols == weight.out_features() && x.rows == out.rows);
  PackTiles(x);
  const int64_t tile_rows = gemm_.tile_rows();
  Note(gemm_.Multiply(tiles_, weight, [&](const TiledGemm::Product& product) {
    const int64_t first = product.tile * tile_rows, rows = std::min(tile_rows, out.rows - first);
    ConvertRows({product.products, rows, product.cols, product.cols, DType::kF32},
                ColumnBand(RowBand(out, first, rows), product.first_col, product.cols));
  }));
}

void CpuOps::AddBias(const float* bias, Matrix x) {
  ForBands(x.rows, x.cols, [&](int64_t first, int64_t count) { AddBiasRows(bias, RowBand(x, first, count)); });
}

const RopeTable& CpuOps::TableFor(const RopeParameters& rope, const RopePairs& pairs, int64_t positions) {
  constexpr int64_t kGrowth = 256;  // Positions, so that a growing sequence seldom extends the table.
  RopeTable& table = rope_tables_[{rope.theta, pairs.pairs, pairs.width, rope.full_precision}];
  if (positions <= table.positions) return table;
  const int64_t wanted = (positions + kGrowth - 1) / kGrowth * kGrowth;
  const DType type = rope.full_precision ? DType::kF32 : activation_;
  table.cosines.resize(static_cast<size_t>(wanted * pairs.pairs));
  table.sines.resize(static_cast<size_t>(wanted * pairs.pairs));
  for (int64_t i = 0; i < pairs.pairs; ++i) {
    const float frequency = RopeFrequency(rope.theta, i, pairs);
    for (int64_t position = table.positions; position < wanted; ++position) {
      const float angle = static_cast<float>(position) * frequency;
      table.cosines[position * pairs.pairs + i] = RoundTo(type, std::cos(angle));
      table.sines[position * pairs.pairs + i] = RoundTo(type, std::sin(angle));
    }
  }
  table.positions = wanted;
  return table;
}

void CpuOps::RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                            const KvLayer& cache, Matrix qkv) {
  CHECK(heads > 0 && kv_heads > 0 && qkv.rows == layout.rows && qkv.cols % (heads + 2 * kv_heads) == 0);
  const int64_t head_size = qkv.cols / (heads + 2 * kv_heads);
  const Matrix q = ColumnBand(qkv, 0, heads * head_size);
  const Matrix k = ColumnBand(qkv, q.cols, kv_heads * head_size);
  const Matrix v = ColumnBand(qkv, q.cols + k.cols, k.cols);
  if (transform.q_gain != nullptr) NormHeads({transform.q_gain, transform.float_gain}, transform.epsilon, heads, q);
  if (transform.k_gain != nullptr) NormHeads({transform.k_gain, transform.float_gain}, transform.epsilon, kv_heads, k);
  if (transform.norm_values) NormHeads(nullptr, transform.epsilon, kv_heads, v);
  Rotate(layout, transform.rope, heads + kv_heads, ColumnBand(qkv, 0, q.cols + k.cols));
  WriteKv(layout, k, v, cache);
}

void CpuOps::Rotate(const StepLayout& layout, const RopeParameters& rope, int32_t heads, Matrix x) {
  const int32_t* positions = layout.positions;
  int64_t last = -1;
  for (int64_t n = 0; n < x.rows; ++n) {
    CHECK(positions[n] >= 0);
    last = std::max<int64_t>(last, positions[n]);
  }
  const RopePairs pairs = PairsOf(rope, x.cols / heads);
  const RopeTable& table = TableFor(rope, pairs, last + 1);
  ForBands(x.rows, x.cols, [&](int64_t first, int64_t count) {
    const RowRotation rotation = {positions + first, table.cosines.data(), table.sines.data(), pairs.pairs,
                                  pairs.distance};
    RotateRows(rotation, heads, RowBand(x, first, count));
  });
}

void CpuOps::WriteKv(const StepLayout& layout, ConstMatrix k, ConstMatrix v, const KvLayer& cache) {
  CHECK(k.rows == layout.rows && v.rows == layout.rows && k.cols == cache.keys.cols && v.cols == cache.values.cols);
  for (int64_t n = 0; n < k.rows; ++n) {
    const int64_t slot = layout.slots[n];
    if (slot < 0) continue;
    CHECK(slot < cache.keys.rows);
    ConvertRows(RowBand(k, n, 1), RowBand(cache.keys, slot, 1));
    ConvertRows(RowBand(v, n, 1), RowBand(cache.values, slot, 1));
  }
}

void CpuOps::Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads,
                       const AttentionRule& rule, const KvLayer& cache, Matrix out) {
  CHECK(heads % kv_heads == 0 && q.cols % heads == 0 && q.rows == layout.rows && SameShape(q, out));
  attention_.Run({layout, q, heads, kv_heads, rule, cache, out});
}

void CpuOps::GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) {
  CHECK(gate_up.cols == 2 * out.cols && gate_up.rows == out.rows && gate_up.dtype == out.dtype);
  ForBands(out.rows, out.cols, [&](int64_t first, int64_t count) {
    GatedMulRows(activation, RowBand(gate_up, first, count), RowBand(out, first, count));
  });
}

void CpuOps::GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  CHECK(x.cols == out.cols);
  for (int64_t r = 0; r < out.rows; ++r) {
    CHECK(rows[r] >= 0 && rows[r] < x.rows);
    ConvertRows(RowBand(x, rows[r], 1), RowBand(out, r, 1));
  }
}

void CpuOps::ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  CHECK(x.cols == out.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    if (rows[r] < 0) continue;
    CHECK(rows[r] < out.rows);
    ConvertRows(RowBand(x, r, 1), RowBand(out, rows[r], 1));
  }
}

void CpuOps::SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                       const SoftEmbedBatch& batch, Matrix out) {
  CHECK(hidden.cols == weight.in_features() && table.cols == out.cols && out.rows == batch.count);
  Note(soft_embedder_.Run({hidden, weight, table, shard, batch, out}));
}

void CpuOps::Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                        const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) {
  CHECK(hidden.cols == weight.in_features() && top_count >= 0 && top_count <= kTopLogitsMax);
  Note(candidates_.Run({hidden, weight, shard, batch, top_count, out, top}));
}

}  // namespace

bool HasInt8Products() { return TiledGemm::HasInt8(); }

std::unique_ptr<Ops> MakeCpuOps(DType activation, const CpuOpsOptions& options) {
  CHECK(options.threads >= 1 && options.tile_rows >= 8 && options.tile_rows <= 64);
  return std::make_unique<CpuOps>(activation, options);
}

}  // namespace quicksilver
