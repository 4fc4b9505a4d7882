#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <dnnl.hpp>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
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

bool HasBf16Arithmetic() {
  const int wanted = static_cast<int>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<int>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
}

dnnl::memory::data_type TypeOf(DType dtype) {
  return dtype == DType::kF32 ? dnnl::memory::data_type::f32 : dnnl::memory::data_type::bf16;
}

/// Numbers in [-1, 1) without a pattern.
std::vector<float> ProbeNumbers(int64_t count) {
  std::vector<float> numbers(static_cast<size_t>(count));
  uint32_t state = 12345;
  for (float& number : numbers) {
    state = state * 1664525u + 1013904223u;
    number = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return numbers;
}

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

}  // namespace

/// [tile_rows, in] times [in, cols].
class TiledGemm::Kernel {
 public:
  Kernel(DType dtype, int64_t tile_rows, int64_t in, int64_t cols, int32_t threads)
      : dtype_(dtype), tile_rows_(tile_rows), in_(in), cols_(cols) {
    using dnnl::memory;
    const memory::desc tile({tile_rows, in}, TypeOf(dtype), memory::format_tag::ab);
    const memory::desc products({tile_rows, cols}, memory::data_type::f32, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // The library's own is not shared between threads.
    const dnnl::matmul::primitive_desc description(
        {tile, memory::desc({in, cols}, TypeOf(dtype), memory::format_tag::any), products}, attributes, Engine());
    primitive_ = dnnl::matmul(description);
    weights_ = description.weights_desc();
    for (int32_t thread = 0; thread < threads; ++thread) {
      lanes_.push_back({dnnl::stream(Engine()), memory(tile, Engine(), nullptr), memory(products, Engine(), nullptr),
                        memory(description.scratchpad_desc(), Engine())});
    }
  }

  const dnnl::memory::desc& weights() const { return weights_; }

  /// plain: [cols, in] of the kernel's type.
  void Reorder(void* plain, dnnl::memory weights) const {
    const dnnl::memory::desc transposed({in_, cols_}, TypeOf(dtype_), dnnl::memory::dims{1, in_});
    dnnl::memory from(transposed, Engine(), plain);
    dnnl::stream stream(Engine());
    dnnl::reorder(from, weights).execute(stream, from, weights);
    stream.wait();
  }

  /// Whether equal rows give equal bits wherever they stand in the tile.
  bool KeepsRowsApart() const {
    std::vector<float> row = ProbeNumbers(in_), values = ProbeNumbers(in_ * cols_), tile;
    for (int64_t n = 0; n < tile_rows_; ++n) tile.insert(tile.end(), row.begin(), row.end());
    std::vector<uint16_t> tile_bf16(tile.size()), values_bf16(values.size());
    if (dtype_ == DType::kBf16) {
      ConvertRows({tile.data(), tile_rows_, in_, in_, DType::kF32}, {tile_bf16.data(), tile_rows_, in_, in_, dtype_});
      ConvertRows({values.data(), cols_, in_, in_, DType::kF32}, {values_bf16.data(), cols_, in_, in_, dtype_});
    }
    const bool f32 = dtype_ == DType::kF32;
    const dnnl::memory weights(weights_, Engine());
    Reorder(f32 ? static_cast<void*>(values.data()) : values_bf16.data(), weights);
    std::vector<float> products(static_cast<size_t>(tile_rows_ * cols_));
    const void* const first_tile = f32 ? static_cast<const void*>(tile.data()) : tile_bf16.data();
    if (Run(0, first_tile, weights, products.data()) != dnnl_success) return false;
    for (int64_t n = 1; n < tile_rows_; ++n) {
      const float* const other = products.data() + n * cols_;
      if (std::memcmp(products.data(), other, static_cast<size_t>(cols_) * sizeof(float)) != 0) return false;
    }
    return true;
  }

  dnnl_status_t Run(int32_t thread, const void* tile, const dnnl::memory& weights, float* products) const {
    const Lane& lane = lanes_[thread];
    lane.tile.set_data_handle(const_cast<void*>(tile));
    lane.products.set_data_handle(products);
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, lane.tile.get()},
                                         {DNNL_ARG_WEIGHTS, weights.get()},
                                         {DNNL_ARG_DST, lane.products.get()},
                                         {DNNL_ARG_SCRATCHPAD, lane.scratchpad.get()}};
    return dnnl_primitive_execute(primitive_.get(), lane.stream.get(), 4, arguments);
  }

 private:
  /// What one thread needs for itself.
  struct Lane {
    dnnl::stream stream;
    dnnl::memory tile;
    dnnl::memory products;
    dnnl::memory scratchpad;
  };

  DType dtype_;
  int64_t tile_rows_;
  int64_t in_;
  int64_t cols_;
  dnnl::matmul primitive_;
  dnnl::memory::desc weights_;
  std::vector<Lane> lanes_;
};

class TiledGemm::Weight final : public GemmWeight {
 public:
  struct Panel {
    const Kernel* kernel = nullptr;
    int64_t first_col = 0;
    int64_t cols = 0;
    dnnl::memory values;
  };

  Weight(int64_t out, int64_t in, HostMemory& memory) : out_(out), in_(in), memory_(memory) {}
  ~Weight() override {
    if (data_ != nullptr) memory_.Free(data_, bytes_);
  }

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  size_t bytes() const override { return bytes_; }
  const std::vector<Panel>& panels() const { return panels_; }

  absl::Status AddPanels(std::vector<Panel> panels) {
    const auto size = [](const Panel& panel) { return (panel.kernel->weights().get_size() + 63) / 64 * 64; };
    size_t bytes = 0;
    for (const Panel& panel : panels) bytes += size(panel);
    ASSIGN_OR_RETURN(data_, memory_.Allocate(bytes));
    bytes_ = bytes;
    char* at = static_cast<char*>(data_);
    for (Panel& panel : panels) {
      panel.values = dnnl::memory(panel.kernel->weights(), Engine(), at);
      at += size(panel);
    }
    panels_ = std::move(panels);
    return absl::OkStatus();
  }

 private:
  int64_t out_;
  int64_t in_;
  HostMemory& memory_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::vector<Panel> panels_;
};

TiledGemm::TiledGemm(DType activation, int64_t tile_rows, HostMemory& memory, ThreadTeam& team)
    : activation_(activation),
      compute_dtype_(activation == DType::kBf16 && HasBf16Arithmetic() ? DType::kBf16 : DType::kF32),
      memory_(memory),
      team_(team),
      tile_rows_(ChooseTileRows(tile_rows)),
      products_(static_cast<size_t>(team.threads())) {}

TiledGemm::~TiledGemm() = default;

std::string TiledGemm::instruction_set() const {
  return absl::StrCat("isa", absl::Hex(static_cast<int>(dnnl::get_effective_cpu_isa())));
}

int64_t TiledGemm::PanelColumns(int64_t in, int64_t out) const {
  const int64_t fitting = kPanelBytesMax / (in * static_cast<int64_t>(ElementBytes(compute_dtype_)));
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
        return Kernel(compute_dtype_, rows, probe[0], probe[1], 1).KeepsRowsApart();
      } catch (const dnnl::error&) {
        return false;
      }
    });
    if (good) return rows;
  }
  return wanted;  // KernelFor will refuse.
}

absl::StatusOr<const TiledGemm::Kernel*> TiledGemm::KernelFor(int64_t in, int64_t cols) {
  std::unique_ptr<Kernel>& kernel = kernels_[{in, cols}];
  if (kernel != nullptr) return kernel.get();
  auto made = std::make_unique<Kernel>(compute_dtype_, tile_rows_, in, cols, team_.threads());
  if (!made->KeepsRowsApart()) {
    return absl::InternalError(absl::StrCat("oneDNN treats the rows of a tile of ", tile_rows_,
                                            " differently by their place, for a weight panel of ", cols, " x ", in));
  }
  kernel = std::move(made);
  return kernel.get();
}

absl::StatusOr<std::unique_ptr<GemmWeight>> TiledGemm::Prepare(ConstMatrix host) {
  CHECK(host.rows > 0 && host.cols > 0);
  omp_set_num_threads(1);
  const int64_t in = host.cols, out = host.rows, columns = PanelColumns(in, out);
  auto weight = std::make_unique<Weight>(out, in, memory_);
  try {
    std::vector<Weight::Panel> panels;
    for (int64_t first = 0; first < out; first += columns) {
      const int64_t cols = std::min(columns, out - first);
      ASSIGN_OR_RETURN(const Kernel* const kernel, KernelFor(in, cols));
      panels.push_back({.kernel = kernel, .first_col = first, .cols = cols});
    }
    RETURN_IF_ERROR(weight->AddPanels(std::move(panels)));
    Workspace<uint16_t> rounded;  // To the activation type, and then to the type computed with.
    Workspace<float> staged;
    for (const Weight::Panel& panel : weight->panels()) {
      const size_t count = static_cast<size_t>(panel.cols * in);
      ConstMatrix source(static_cast<const char*>(host.data) +
                             static_cast<size_t>(panel.first_col * host.stride) * ElementBytes(host.dtype),
                         panel.cols, in, host.stride, host.dtype);
      if (activation_ == DType::kBf16) {
        const Matrix bf16{rounded.Get(count), panel.cols, in, in, DType::kBf16};
        ConvertRows(source, bf16);
        source = bf16;
      }
      const Matrix plain{compute_dtype_ == DType::kF32 ? static_cast<void*>(staged.Get(count)) : rounded.Get(count),
                         panel.cols, in, in, compute_dtype_};
      if (plain.data != source.data) ConvertRows(source, plain);
      panel.kernel->Reorder(plain.data, panel.values);
    }
  } catch (const dnnl::error& error) {
    return absl::InternalError(absl::StrCat("oneDNN cannot prepare a weight of ", out, " x ", in, ": ", error.what()));
  }
  return weight;
}

absl::Status TiledGemm::Multiply(absl::Span<const Job> jobs, Visitor visit) {
  panel_ends_.clear();
  int64_t panels = 0, work = 0;
  for (const Job& job : jobs) {
    const int64_t tiles = static_cast<int64_t>(job.tiles.size());
    panels += tiles == 0 ? 0 : Panels(*job.weight);
    panel_ends_.push_back(panels);
    work += tiles * tile_rows_ * job.weight->in_features() * job.weight->out_features();
  }
  std::atomic<int> failure{dnnl_success};
  team_.Run(panels, work >= kSharedWorkMin, [&](int64_t item, int32_t thread) {
    omp_set_num_threads(1);
    const size_t j = std::upper_bound(panel_ends_.begin(), panel_ends_.end(), item) - panel_ends_.begin();
    const int64_t index = item - (j == 0 ? 0 : panel_ends_[j - 1]);
    const Weight::Panel& panel = static_cast<const Weight&>(*jobs[j].weight).panels()[static_cast<size_t>(index)];
    float* products = products_[thread].Get(static_cast<size_t>(tile_rows_ * panel.cols));
    for (size_t tile = 0; tile < jobs[j].tiles.size(); ++tile) {
      const dnnl_status_t status = panel.kernel->Run(thread, jobs[j].tiles[tile], panel.values, products);
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

}  // namespace quicksilver
