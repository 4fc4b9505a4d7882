#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
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
class TiledGemm {
 public:
  /// Tiles have at least `tile_rows` rows: the first height whose rows oneDNN treats alike on this machine. `memory`
  /// and `team` outlive this and all its weights.
  TiledGemm(DType activation, int64_t tile_rows, HostMemory& memory, ThreadTeam& team);
  ~TiledGemm();

  int64_t tile_rows() const { return tile_rows_; }
  /// The type that tiles must have: the activation type, or f32 on machines without bf16 arithmetic.
  DType compute_dtype() const { return compute_dtype_; }
  /// The instruction set that oneDNN uses; part of what bits depend on.
  std::string instruction_set() const;

  absl::StatusOr<std::unique_ptr<GemmWeight>> Prepare(ConstMatrix host);

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

 private:
  class Kernel;
  class Weight;

  int64_t ChooseTileRows(int64_t wanted) const;
  absl::StatusOr<const Kernel*> KernelFor(int64_t in, int64_t cols);
  int64_t PanelColumns(int64_t in, int64_t out) const;

  DType activation_;
  DType compute_dtype_;
  HostMemory& memory_;
  ThreadTeam& team_;
  int64_t tile_rows_;
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<Kernel>> kernels_;  // By in features and columns.
  std::vector<Workspace<float>> products_;                                  // One a thread, [tile_rows, cols].
  std::vector<int64_t> panel_ends_;                                         // Of the jobs under way.
};

}  // namespace quicksilver
