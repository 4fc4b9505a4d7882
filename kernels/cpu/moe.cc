#include "kernels/cpu/moe.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/row_kernels.h"

namespace quicksilver {
namespace {

/// More are run one pass after the other, so that memory stays bounded.
constexpr int64_t kPassRows = 1024;
/// Elements of a row-by-row operation below which waking other threads costs more.
constexpr int64_t kSharedElements = 1 << 17;

Matrix RowBand(const Matrix& m, int64_t first, int64_t rows) {
  char* const data = static_cast<char*>(m.data) + static_cast<size_t>(first * m.stride) * ElementBytes(m.dtype);
  return {data, rows, m.cols, m.stride, m.dtype};
}

ConstMatrix RowBand(const ConstMatrix& m, int64_t first, int64_t rows) {
  const char* const data =
      static_cast<const char*>(m.data) + static_cast<size_t>(first * m.stride) * ElementBytes(m.dtype);
  return {data, rows, m.cols, m.stride, m.dtype};
}

size_t BytesOf(int64_t rows, int64_t cols, DType dtype) {
  return static_cast<size_t>(rows * cols) * ElementBytes(dtype);
}

}  // namespace

class ExpertMixer::Weights final : public ExpertWeights {
 public:
  Weights(const ExpertShape& shape, TiledGemm& gemm)
      : shape_(shape), gemm_(gemm), experts_(static_cast<size_t>(shape.count)) {}

  const ExpertShape& shape() const override { return shape_; }
  size_t bytes() const override { return bytes_; }
  absl::Status Load(int32_t expert, ExpertMatrix which, ConstMatrix host) override {
    CHECK(Holds(expert));
    CHECK(host.rows == (which == ExpertMatrix::kDown ? shape_.hidden : 2 * shape_.mlp));
    CHECK(host.cols == (which == ExpertMatrix::kDown ? shape_.mlp : shape_.hidden));
    ASSIGN_OR_RETURN(std::unique_ptr<GemmWeight> weight, gemm_.Prepare(host));
    std::unique_ptr<GemmWeight>& slot = Slot(expert, which);
    bytes_ += weight->bytes() - (slot == nullptr ? 0 : slot->bytes());
    slot = std::move(weight);
    return absl::OkStatus();
  }

  bool Holds(int32_t expert) const { return expert >= shape_.first && expert < shape_.first + shape_.count; }
  /// False: its output is 0.
  bool IsLoaded(int32_t expert) const {
    const Expert& held = experts_[static_cast<size_t>(expert - shape_.first)];
    return held.gate_up != nullptr && held.down != nullptr;
  }
  const GemmWeight& matrix(int32_t expert, ExpertMatrix which) const {
    const Expert& held = experts_[static_cast<size_t>(expert - shape_.first)];
    return which == ExpertMatrix::kDown ? *held.down : *held.gate_up;
  }

 private:
  struct Expert {
    std::unique_ptr<GemmWeight> gate_up;
    std::unique_ptr<GemmWeight> down;
  };
  std::unique_ptr<GemmWeight>& Slot(int32_t expert, ExpertMatrix which) {
    Expert& held = experts_[static_cast<size_t>(expert - shape_.first)];
    return which == ExpertMatrix::kDown ? held.down : held.gate_up;
  }

  ExpertShape shape_;
  TiledGemm& gemm_;
  std::vector<Expert> experts_;
  size_t bytes_ = 0;
};

std::unique_ptr<ExpertWeights> ExpertMixer::Prepare(const ExpertShape& shape) const {
  return std::make_unique<Weights>(shape, gemm_);
}

absl::Status ExpertMixer::Run(const ExpertCall& call) {
  const ExpertShape& shape = call.weights.shape();
  CHECK(call.x.cols == shape.hidden && call.out.cols == shape.hidden && call.x.rows == call.out.rows && call.k >= 1);
  for (int64_t first = 0; first < call.x.rows; first += kPassRows) {
    RETURN_IF_ERROR(RunPass(call, first, std::min(kPassRows, call.x.rows - first)));
  }
  return absl::OkStatus();
}

absl::Status ExpertMixer::RunPass(const ExpertCall& call, int64_t first, int64_t rows) {
  const ExpertShape& shape = call.weights.shape();
  Plan(call, first, rows);
  const int64_t places = static_cast<int64_t>(rows_.size());
  const Matrix gate_up = {gate_up_.Get(BytesOf(places, 2 * shape.mlp, activation_)), places, 2 * shape.mlp,
                          2 * shape.mlp, activation_};
  const Matrix outputs = {outputs_.Get(BytesOf(places, shape.hidden, activation_)), places, shape.hidden, shape.hidden,
                          activation_};
  Gather(call, first);
  RETURN_IF_ERROR(MultiplyGroups(ExpertMatrix::kGateUp, shape.hidden, gate_up));
  Activate(call.activation, shape.mlp, gate_up);
  RETURN_IF_ERROR(MultiplyGroups(ExpertMatrix::kDown, shape.mlp, outputs));
  const int64_t bands = rows * shape.hidden * call.k >= kSharedElements ? std::min<int64_t>(rows, team_.threads()) : 1;
  team_.Run(bands, bands > 1, [&](int64_t band, int32_t) {
    const int64_t from = rows * band / bands, count = rows * (band + 1) / bands - from;
    WeightedSumRows(outputs, places_.data() + from * call.k, call.expert_weights + (first + from) * call.k, call.k,
                    call.add, RowBand(call.out, first + from, count));
  });
  return absl::OkStatus();
}

void ExpertMixer::Plan(const ExpertCall& call, int64_t first, int64_t rows) {
  const auto& weights = static_cast<const Weights&>(call.weights);
  const ExpertShape& shape = weights.shape();
  const int64_t tile_rows = gemm_.tile_rows();
  const int32_t* const experts = call.experts + first * call.k;
  const auto runs = [&](int64_t choice) { return weights.Holds(experts[choice]) && weights.IsLoaded(experts[choice]); };
  next_place_.assign(static_cast<size_t>(shape.count), 0);
  for (int64_t choice = 0; choice < rows * call.k; ++choice) {
    if (runs(choice)) ++next_place_[static_cast<size_t>(experts[choice] - shape.first)];
  }
  groups_.clear();
  int64_t tiles = 0;
  for (int32_t i = 0; i < shape.count; ++i) {
    const int64_t wanted = (next_place_[static_cast<size_t>(i)] + tile_rows - 1) / tile_rows;
    next_place_[static_cast<size_t>(i)] = tiles * tile_rows;
    if (wanted > 0) groups_.push_back({&weights, shape.first + i, tiles, wanted});
    tiles += wanted;
  }
  places_.assign(static_cast<size_t>(rows * call.k), -1);
  rows_.assign(static_cast<size_t>(tiles * tile_rows), -1);
  for (int64_t choice = 0; choice < rows * call.k; ++choice) {
    if (!runs(choice)) continue;
    const int64_t place = next_place_[static_cast<size_t>(experts[choice] - shape.first)]++;
    places_[static_cast<size_t>(choice)] = static_cast<int32_t>(place);
    rows_[static_cast<size_t>(place)] = static_cast<int32_t>(choice / call.k);
  }
}

void ExpertMixer::Gather(const ExpertCall& call, int64_t first) {
  const int64_t cols = call.x.cols, tile_rows = gemm_.tile_rows(), places = static_cast<int64_t>(rows_.size());
  const DType dtype = gemm_.compute_dtype();
  const Matrix gathered = {gathered_.Get(BytesOf(places, std::max(cols, call.weights.shape().mlp), dtype)), places,
                           cols, cols, dtype};
  team_.Run(places / tile_rows, places * cols >= kSharedElements, [&](int64_t tile, int32_t) {
    for (int64_t place = tile * tile_rows; place < (tile + 1) * tile_rows; ++place) {
      const int32_t row = rows_[static_cast<size_t>(place)];
      const Matrix to = RowBand(gathered, place, 1);
      if (row >= 0) {
        ConvertRows(RowBand(call.x, first + row, 1), to);
      } else {
        std::memset(to.data, 0, BytesOf(1, cols, dtype));
      }
    }
  });
}

absl::Status ExpertMixer::MultiplyGroups(ExpertMatrix which, int64_t in, Matrix out) {
  const int64_t tile_rows = gemm_.tile_rows(), tiles = out.rows / tile_rows;
  const size_t tile_bytes = BytesOf(tile_rows, in, gemm_.compute_dtype());
  tiles_.clear();
  for (int64_t tile = 0; tile < tiles; ++tile) {
    tiles_.push_back(gathered_.Get(0) + static_cast<size_t>(tile) * tile_bytes);
  }
  jobs_.clear();
  for (const Group& group : groups_) {
    jobs_.push_back(
        {absl::MakeConstSpan(tiles_).subspan(static_cast<size_t>(group.first_tile), static_cast<size_t>(group.tiles)),
         &group.weights->matrix(group.expert, which)});
  }
  return gemm_.Multiply(jobs_, [&](const TiledGemm::Product& product) {
    const int64_t tile = groups_[static_cast<size_t>(product.job)].first_tile + product.tile;
    ConvertRows({product.products, tile_rows, product.cols, product.cols, DType::kF32},
                ColumnBand(RowBand(out, tile * tile_rows, tile_rows), product.first_col, product.cols));
  });
}

void ExpertMixer::Activate(Activation activation, int64_t mlp, const Matrix& gate_up) {
  const int64_t tile_rows = gemm_.tile_rows();
  const DType dtype = gemm_.compute_dtype();
  const Matrix inner = {gathered_.Get(0), gate_up.rows, mlp, mlp, dtype};
  team_.Run(gate_up.rows / tile_rows, gate_up.rows * mlp >= kSharedElements, [&](int64_t tile, int32_t) {
    const Matrix band = RowBand(gate_up, tile * tile_rows, tile_rows), product = ColumnBand(band, 0, mlp);
    GatedMulRows(activation, band, product);
    ConvertRows(product, RowBand(inner, tile * tile_rows, tile_rows));
  });
}

}  // namespace quicksilver
