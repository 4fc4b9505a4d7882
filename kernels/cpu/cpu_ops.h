#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/ops.h"

namespace quicksilver {

/// Plain loops, written to be read: what every other implementation is compared with. Slow.
std::unique_ptr<Ops> MakeReferenceOps(DType activation);

struct CpuOpsOptions {
  /// Threads that one operation may use; at least 1. Ranks that share a machine should divide its cores.
  int32_t threads = 1;
  /// Rows of one GEMM call, in [8, 64]; a last tile is padded with zero rows. Every batch is cut into such tiles, so a
  /// row meets the same kernel whatever shares its batch. Small tiles waste less on a lone block of masks, large ones
  /// read a big weight fewer times.
  int32_t tile_rows = 16;
  /// Most bytes that Allocate and PrepareWeight may hold together; 0: the machine's memory.
  size_t memory_bytes_max = 0;
};

/// The fast implementation: oneDNN for the matrix products, vectorised loops for the rest.
std::unique_ptr<Ops> MakeCpuOps(DType activation, const CpuOpsOptions& options);

}  // namespace quicksilver
