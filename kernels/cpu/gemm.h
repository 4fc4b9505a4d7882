#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu/gemm_kernel.h"
#include "kernels/cpu/host_memory.h"
#include "kernels/cpu/thread_team.h"
#include "kernels/cpu/workspace.h"
#include "kernels/ops.h"

namespace quicksilver {

/// oneDNN's matrix product, called in a way that keeps rows apart: a weight is cut into panels of columns that fit a
/// core's cache, a batch into tiles of `tile_rows` rows, and every call multiplies one tile with one panel on one
/// thread. So there is one kernel per panel width, whatever the batch and however many threads share the panels, and a
/// large weight is read from memory once for all tiles. Even so oneDNN may treat the rows of a tile differently by
/// their place (with AVX2 the last two of eight), so every kernel is tried out with equal rows before it is used.
/// Products are floats; the caller rounds.
///
/// Weights of layers may be kept in 8 bits (w[o, i] = q[o, i] * s[o], q in [-127, 127], s[o] from the largest magnitude
/// of the output feature); every row of a tile is then rounded to 8 bits alike, and the sums of integers are exact, so
/// rows stay apart by arithmetic, and a tile with a few rows may go through a lower kernel.
class TiledGemm {
 public:
  struct Options {
    DType activation = DType::kF32;
    int64_t tile_rows = 8;     ///< At least; the first height whose rows oneDNN treats alike on this machine.
    bool int8_layers = false;  ///< Weights of layers and what they multiply are rounded to 8 bits.
  };
  /// `memory` and `team` outlive this and all its weights.
  TiledGemm(const Options& options, HostMemory& memory, ThreadTeam& team);
  ~TiledGemm();

  /// Whether this machine sums up products of bytes exactly.
  static bool HasInt8();

  int64_t tile_rows() const { return tile_rows_; }
  /// The type that tiles must have: the activation type, or f32 on machines without bf16 arithmetic.
  DType compute_dtype() const { return compute_dtype_; }
  /// The instruction set that oneDNN uses; part of what bits depend on.
  std::string instruction_set() const;

  /// InvalidArgument: more input features than 32-bit sums of bytes can take.
  absl::StatusOr<std::unique_ptr<GemmWeight>> Prepare(ConstMatrix host, WeightRole role = WeightRole::kLayer);

  /// One product of several that run together.
  struct Job {
    absl::Span<const void* const> tiles;  ///< Each a dense [tile_rows, in] matrix of compute_dtype().
    const GemmWeight* weight = nullptr;
  };
  /// products: [tile_rows, cols], dense, of tile `tile` with the output features [first_col, first_col + cols).
  struct Product {
    int64_t tile = 0;
    int64_t first_col = 0;
    int64_t cols = 0;
    const float* products = nullptr;
    int64_t panel = 0;  ///< Which panel of the weight: in [0, Panels(weight)).
    int32_t thread = 0;
    int64_t job = 0;  ///< Which of the jobs.
  };
  using Visitor = absl::FunctionRef<void(const Product&)>;

  /// Calls `visit` once for every job, tile and panel, panels of all jobs in parallel, the tiles of one panel in
  /// ascending order.
  absl::Status Multiply(absl::Span<const Job> jobs, Visitor visit);
  absl::Status Multiply(absl::Span<const void* const> tiles, const GemmWeight& weight, Visitor visit) {
    const Job job = {tiles, &weight};
    return Multiply({&job, 1}, visit);
  }

  static int64_t Panels(const GemmWeight& weight);
  /// Columns of the widest panel.
  static int64_t PanelColumnsMax(const GemmWeight& weight);

 private:
  struct Panel;
  class Weight;
  /// What the jobs up to and with one have in all.
  struct JobEnd {
    int64_t panels = 0;
    int64_t int8_tiles = 0;
  };
  /// A tile to be rounded to bytes, `first_byte` into quantized_rows_.
  struct Int8Tile {
    const void* from;
    int64_t in;
    size_t first_byte;
    bool low;  ///< All rows but the first few are zero.
  };

  int64_t ChooseTileRows(int64_t wanted) const;
  absl::StatusOr<const GemmKernel*> KernelFor(GemmArithmetic arithmetic, int64_t rows, int64_t in, int64_t cols);
  int64_t PanelColumns(GemmArithmetic arithmetic, int64_t in, int64_t out) const;
  void FillFloat(ConstMatrix host, const Weight& weight) const;
  static void FillInt8(ConstMatrix host, const Weight& weight);
  void Quantize(absl::Span<const Job> jobs);
  dnnl_status_t RunTile(const Job& job, const Panel& panel, size_t tile, size_t int8_tile, int32_t thread,
                        float* products);

  Options options_;
  DType compute_dtype_;
  HostMemory& memory_;
  ThreadTeam& team_;
  int64_t tile_rows_;
  /// By rows, in features and columns.
  std::map<std::tuple<GemmArithmetic, int64_t, int64_t, int64_t>, std::unique_ptr<GemmKernel>> kernels_;
  std::vector<Workspace<float>> products_;  // One a thread, [tile_rows, cols].
  std::vector<JobEnd> job_ends_;            // Of the jobs under way.
  std::vector<Int8Tile> int8_tiles_;        // Of the jobs under way, in their order.
  Workspace<uint8_t> quantized_rows_;
  Workspace<float> row_scales_;  // [int8_tiles_, tile_rows]
};

}  // namespace quicksilver
