#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/int8_rows.h"
#include "kernels/cpu/row_kernels.h"

// oneDNN runs on OpenMP. We share the work ourselves, so on our threads it must not start any of its own; this is the
// one function needed, and clang has no omp.h here.
extern "C" void omp_set_num_threads(int threads);

namespace quicksilver {
namespace {

/// A panel should stay in a core's second-level cache while all tiles pass, next to the tiles.
constexpr int64_t kPanelBytesMax = 512 << 10;
/// Above it a tile wastes more than it saves.
constexpr int64_t kTileRowsMax = 64;
/// oneDNN pads weights to this many columns.
constexpr int64_t kPanelColumnsUnit = 64;
/// Rows of the low kernel of bytes: with fewer rows a large weight is read no faster.
constexpr int64_t kLowRows = 4;
/// Rows of activations are u8 = s8 + 128: what processors multiply by s8.
constexpr int32_t kRowZero = 128;
/// Of rounded tiles: rounding more is worth sharing.
constexpr size_t kSharedBytes = 1 << 17;
/// 255 * 127 * in must stay below 2^31.
constexpr int64_t kInt8InMax = INT32_MAX / (255 * 127);

bool HasBf16Arithmetic() {
  const int wanted = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
}

GemmArithmetic ArithmeticOf(DType dtype) { return dtype == DType::kF32 ? GemmArithmetic::kF32 : GemmArithmetic::kBf16; }

/// Rows [first, first + rows) of `m`.
ConstMatrix RowsOf(const ConstMatrix& m, int64_t first, int64_t rows) {
  const size_t skipped = static_cast<size_t>(first * m.stride) * ElementBytes(m.dtype);
  return {static_cast<const char*>(m.data) + skipped, rows, m.cols, m.stride, m.dtype};
}

}  // namespace

struct TiledGemm::Panel {
  const GemmKernel* kernel = nullptr;
  const GemmKernel* low_kernel = nullptr;  // Of kInt8: for tiles with rows in front alone. Null: there is none.
  int64_t first_col = 0;
  int64_t cols = 0;
  dnnl::memory values;
};

class TiledGemm::Weight final : public GemmWeight {
 public:
  Weight(GemmArithmetic arithmetic, int64_t out, int64_t in, HostMemory& memory)
      : arithmetic_(arithmetic), out_(out), in_(in), memory_(memory) {}
  ~Weight() override {
    if (data_ != nullptr) memory_.Free(data_, bytes_);
  }

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  size_t bytes() const override { return bytes_; }
  GemmArithmetic arithmetic() const { return arithmetic_; }
  const std::vector<Panel>& panels() const { return panels_; }
  // Of kInt8, by output feature. A feature's offset is what kRowZero adds to its sums.
  float* scales() const { return scales_; }
  int32_t* offsets() const { return offsets_; }

  absl::Status AddPanels(std::vector<Panel> panels) {
    const auto size = [](const Panel& panel) { return (panel.kernel->weights().get_size() + 63) / 64 * 64; };
    const size_t channels = arithmetic_ == GemmArithmetic::kInt8 ? static_cast<size_t>(out_) : 0;
    size_t bytes = channels * (sizeof(float) + sizeof(int32_t));
    for (const Panel& panel : panels) bytes += size(panel);
    ASSIGN_OR_RETURN(data_, memory_.Allocate(bytes));
    bytes_ = bytes;
    char* at = static_cast<char*>(data_);
    for (Panel& panel : panels) {
      panel.values = dnnl::memory(panel.kernel->weights(), GemmEngine(), at);
      at += size(panel);
    }
    scales_ = reinterpret_cast<float*>(at);
    offsets_ = reinterpret_cast<int32_t*>(scales_ + channels);
    panels_ = std::move(panels);
    return absl::OkStatus();
  }

 private:
  GemmArithmetic arithmetic_;
  int64_t out_;
  int64_t in_;
  HostMemory& memory_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
  float* scales_ = nullptr;
  int32_t* offsets_ = nullptr;
  std::vector<Panel> panels_;
};

TiledGemm::TiledGemm(const Options& options, HostMemory& memory, ThreadTeam& team)
    : options_(options),
      compute_dtype_(options.activation == DType::kBf16 && HasBf16Arithmetic() ? DType::kBf16 : DType::kF32),
      memory_(memory),
      team_(team),
      tile_rows_(ChooseTileRows(options.tile_rows)),
      products_(static_cast<size_t>(team.threads())) {}

TiledGemm::~TiledGemm() = default;

std::string TiledGemm::instruction_set() const {
  return absl::StrCat("isa", absl::Hex(static_cast<int>(dnnl::get_effective_cpu_isa())));
}

bool TiledGemm::HasInt8() {
  omp_set_num_threads(1);
  try {
    return GemmKernel(GemmArithmetic::kInt8, Options{}.tile_rows, 192, kPanelColumnsUnit, 1).KeepsPromises();
  } catch (const dnnl::error&) {
    return false;
  }
}

int64_t TiledGemm::PanelColumns(GemmArithmetic arithmetic, int64_t in, int64_t out) const {
  const int64_t fitting = kPanelBytesMax / (in * GemmElementBytes(arithmetic));
  const int64_t shared = (out + team_.threads() - 1) / team_.threads();  // No thread without a panel.
  const int64_t rounded_up = (shared + kPanelColumnsUnit - 1) / kPanelColumnsUnit * kPanelColumnsUnit;
  return std::max(kPanelColumnsUnit, std::min(fitting / kPanelColumnsUnit * kPanelColumnsUnit, rounded_up));
}

int64_t TiledGemm::ChooseTileRows(int64_t wanted) const {
  constexpr int64_t kProbes[][2] = {{63, 65}, {192, 320}, {1024, 64}};  // In features and columns: odd, small, deep.
  omp_set_num_threads(1);
  for (int64_t rows = wanted; rows <= kTileRowsMax; ++rows) {
    const bool good = std::all_of(std::begin(kProbes), std::end(kProbes), [&](const int64_t(&probe)[2]) {
      try {
        return GemmKernel(ArithmeticOf(compute_dtype_), rows, probe[0], probe[1], 1).KeepsPromises();
      } catch (const dnnl::error&) {
        return false;
      }
    });
    if (good) return rows;
  }
  return wanted;  // KernelFor will refuse.
}

absl::StatusOr<const GemmKernel*> TiledGemm::KernelFor(GemmArithmetic arithmetic, int64_t rows, int64_t in,
                                                       int64_t cols) {
  std::unique_ptr<GemmKernel>& kernel = kernels_[{arithmetic, rows, in, cols}];
  if (kernel != nullptr) return kernel.get();
  auto made = std::make_unique<GemmKernel>(arithmetic, rows, in, cols, team_.threads());
  if (!made->KeepsPromises()) {
    return absl::InternalError(absl::StrCat("oneDNN treats the rows of a tile of ", rows, " differently by their place",
                                            arithmetic == GemmArithmetic::kInt8 ? " or rounds sums of bytes" : "",
                                            ", for a weight panel of ", cols, " x ", in));
  }
  kernel = std::move(made);
  return kernel.get();
}

absl::StatusOr<std::unique_ptr<GemmWeight>> TiledGemm::Prepare(ConstMatrix host, WeightRole role) {
  CHECK(host.rows > 0 && host.cols > 0);
  omp_set_num_threads(1);
  const bool int8 = options_.int8_layers && role == WeightRole::kLayer;
  const GemmArithmetic arithmetic = int8 ? GemmArithmetic::kInt8 : ArithmeticOf(compute_dtype_);
  const int64_t in = host.cols, out = host.rows, columns = PanelColumns(arithmetic, in, out);
  if (int8 && in > kInt8InMax) {
    return absl::InvalidArgumentError(absl::StrCat("a weight of ", out, " x ", in, " in 8 bits: expected at most ",
                                                   kInt8InMax, " input features, found ", in));
  }
  auto weight = std::make_unique<Weight>(arithmetic, out, in, memory_);
  try {
    std::vector<Panel> panels;
    for (int64_t first = 0; first < out; first += columns) {
      const int64_t cols = std::min(columns, out - first);
      Panel& panel = panels.emplace_back(Panel{.first_col = first, .cols = cols});
      ASSIGN_OR_RETURN(panel.kernel, KernelFor(arithmetic, tile_rows_, in, cols));
      if (!int8) continue;
      ASSIGN_OR_RETURN(panel.low_kernel, KernelFor(arithmetic, kLowRows, in, cols));
      if (panel.low_kernel->weights() != panel.kernel->weights()) panel.low_kernel = nullptr;
    }
    RETURN_IF_ERROR(weight->AddPanels(std::move(panels)));
    int8 ? FillInt8(host, *weight) : FillFloat(host, *weight);
  } catch (const dnnl::error& error) {
    return absl::InternalError(absl::StrCat("oneDNN cannot prepare a weight of ", out, " x ", in, ": ", error.what()));
  }
  return weight;
}

void TiledGemm::FillFloat(ConstMatrix host, const Weight& weight) const {
  const int64_t in = host.cols;
  Workspace<uint16_t> rounded;  // To the activation type, and then to the type computed with.
  Workspace<float> staged;
  for (const Panel& panel : weight.panels()) {
    const size_t count = static_cast<size_t>(panel.cols * in);
    ConstMatrix source = RowsOf(host, panel.first_col, panel.cols);
    if (options_.activation == DType::kBf16) {
      const Matrix bf16{rounded.Get(count), panel.cols, in, in, DType::kBf16};
      ConvertRows(source, bf16);
      source = bf16;
    }
    const Matrix plain{compute_dtype_ == DType::kF32 ? static_cast<void*>(staged.Get(count)) : rounded.Get(count),
                       panel.cols, in, in, compute_dtype_};
    if (plain.data != source.data) ConvertRows(source, plain);
    panel.kernel->Reorder(plain.data, panel.values);
  }
}

void TiledGemm::FillInt8(ConstMatrix host, const Weight& weight) {
  const int64_t in = host.cols;
  Workspace<uint8_t> staged;
  for (const Panel& panel : weight.panels()) {
    uint8_t* const values = staged.Get(static_cast<size_t>(panel.cols * in));
    QuantizeRows(RowsOf(host, panel.first_col, panel.cols), /*zero=*/0, values, weight.scales() + panel.first_col);
    for (int64_t c = 0; c < panel.cols; ++c) {
      int32_t sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += static_cast<int8_t>(values[c * in + i]);
      weight.offsets()[panel.first_col + c] = kRowZero * sum;
    }
    panel.kernel->Reorder(values, panel.values);
  }
}

/// Rounds the tiles of those jobs whose weights are of bytes.
void TiledGemm::Quantize(absl::Span<const Job> jobs) {
  int8_tiles_.clear();
  size_t bytes = 0;
  for (const Job& job : jobs) {
    if (static_cast<const Weight&>(*job.weight).arithmetic() != GemmArithmetic::kInt8) continue;
    const int64_t in = job.weight->in_features();
    for (const void* const tile : job.tiles) {
      int8_tiles_.push_back({.from = tile, .in = in, .first_byte = bytes, .low = false});
      bytes += (static_cast<size_t>(tile_rows_ * in) + 63) / 64 * 64;
    }
  }
  uint8_t* const values = quantized_rows_.Get(bytes);
  float* const scales = row_scales_.Get(int8_tiles_.size() * static_cast<size_t>(tile_rows_));
  const auto tiles = static_cast<int64_t>(int8_tiles_.size());
  team_.Run(tiles, bytes >= kSharedBytes, [&](int64_t item, int32_t) {
    Int8Tile& tile = int8_tiles_[static_cast<size_t>(item)];
    QuantizeRows({tile.from, tile_rows_, tile.in, tile.in, compute_dtype_}, kRowZero, values + tile.first_byte,
                 scales + item * tile_rows_);
    tile.low = std::all_of(scales + item * tile_rows_ + kLowRows, scales + (item + 1) * tile_rows_,
                           [](float scale) { return scale == 0.0f; });
  });
}

/// Multiplies a tile by a panel, on `thread`.
dnnl_status_t TiledGemm::RunTile(const Job& job, const Panel& panel, size_t tile, size_t int8_tile, int32_t thread,
                                 float* products) {
  const Weight& weight = static_cast<const Weight&>(*job.weight);
  if (weight.arithmetic() != GemmArithmetic::kInt8) {
    return panel.kernel->Run(thread, job.tiles[tile], panel.values, products);
  }
  const uint8_t* const values = quantized_rows_.Get(0) + int8_tiles_[int8_tile].first_byte;
  const bool low = int8_tiles_[int8_tile].low && panel.low_kernel != nullptr;
  const int64_t rows = low ? kLowRows : tile_rows_;
  const dnnl_status_t status = (low ? panel.low_kernel : panel.kernel)->Run(thread, values, panel.values, products);
  std::fill(products + rows * panel.cols, products + tile_rows_ * panel.cols, 0.0f);
  ScaleSums(rows, panel.cols, weight.offsets() + panel.first_col,
            row_scales_.Get(0) + static_cast<int64_t>(int8_tile) * tile_rows_, weight.scales() + panel.first_col,
            products);
  return status;
}

absl::Status TiledGemm::Multiply(absl::Span<const Job> jobs, Visitor visit) {
  job_ends_.clear();
  JobEnd end;
  int64_t work = 0, columns = 0;
  for (const Job& job : jobs) {
    const int64_t tiles = static_cast<int64_t>(job.tiles.size());
    const bool int8 = static_cast<const Weight&>(*job.weight).arithmetic() == GemmArithmetic::kInt8;
    end.panels += tiles == 0 ? 0 : Panels(*job.weight);
    end.int8_tiles += int8 ? tiles : 0;
    job_ends_.push_back(end);
    work += tiles * tile_rows_ * job.weight->in_features() * job.weight->out_features();
    columns = std::max(columns, PanelColumnsMax(*job.weight));
  }
  if (end.int8_tiles > 0) Quantize(jobs);
  for (Workspace<float>& products : products_) products.Get(static_cast<size_t>(tile_rows_ * columns));
  std::atomic<int> failure{dnnl_success};
  team_.Run(end.panels, work >= kSharedWorkMin, [&](int64_t item, int32_t thread) {
    omp_set_num_threads(1);
    const auto after = std::upper_bound(job_ends_.begin(), job_ends_.end(), item,
                                        [](int64_t i, const JobEnd& job_end) { return i < job_end.panels; });
    const auto j = static_cast<size_t>(after - job_ends_.begin());
    const JobEnd before = j == 0 ? JobEnd() : job_ends_[j - 1];
    const int64_t index = item - before.panels;
    const Panel& panel = static_cast<const Weight&>(*jobs[j].weight).panels()[static_cast<size_t>(index)];
    float* products = products_[static_cast<size_t>(thread)].Get(0);
    for (size_t tile = 0; tile < jobs[j].tiles.size(); ++tile) {
      const size_t int8_tile = static_cast<size_t>(before.int8_tiles) + tile;
      const dnnl_status_t status = RunTile(jobs[j], panel, tile, int8_tile, thread, products);
      if (status != dnnl_success) failure.store(status, std::memory_order_relaxed);
      visit({.tile = static_cast<int64_t>(tile),
             .first_col = panel.first_col,
             .cols = panel.cols,
             .products = products,
             .panel = index,
             .thread = thread,
             .job = static_cast<int64_t>(j)});
    }
  });
  if (failure.load(std::memory_order_relaxed) == dnnl_success) return absl::OkStatus();
  const GemmWeight& weight = *jobs.front().weight;
  return absl::InternalError(absl::StrCat("oneDNN failed to multiply by a weight of ", weight.out_features(), " x ",
                                          weight.in_features(), ": status ", failure.load(std::memory_order_relaxed)));
}

int64_t TiledGemm::Panels(const GemmWeight& weight) {
  return static_cast<int64_t>(static_cast<const Weight&>(weight).panels().size());
}

int64_t TiledGemm::PanelColumnsMax(const GemmWeight& weight) {
  return static_cast<const Weight&>(weight).panels().front().cols;
}

}  // namespace quicksilver
