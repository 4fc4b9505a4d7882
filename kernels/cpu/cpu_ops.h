#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/ops.h"

namespace quicksilver {

/// Plain loops, written to be read: what every other implementation is compared with. Slow.
std::unique_ptr<Ops> MakeReferenceOps(DType activation);

struct CpuOpsOptions {
  /// Threads that one operation may use; at least 1. Ranks that share a machine should divide its cores. With 1 no
  /// thread is made, OpenMP's included, so nothing spins; more are our own and sleep after some hundred idle
  /// microseconds: OMP_NUM_THREADS and OMP_WAIT_POLICY change nothing.
  int32_t threads = 1;
  /// Rows of one matrix product, in [8, 64]; more where oneDNN would treat rows of such a tile differently (10 with
  /// AVX2). Every batch is cut into such tiles, the last padded with zeros, so a row meets the same kernel whatever
  /// shares its batch. 8 is a block of the smaller block lengths without padding, and
  /// large batches lose little (docs/benchmarks/cpu_kernels.md); on machines with tile arithmetic (AMX) try 16 or 32.
  int32_t tile_rows = 8;
  /// Keep the weights of layers as 8-bit integers with a scale an output feature, and round every row that they multiply
  /// to 8 bits with a scale of its own (kernels/cpu/gemm.h). Needs HasInt8Products().
  bool int8_layers = false;
  /// Most bytes that Allocate and PrepareWeight may hold together; 0: the machine's memory.
  size_t memory_bytes_max = 0;
};

/// Whether this machine adds up products of bytes exactly (AVX-512 VNNI or AVX-VNNI).
bool HasInt8Products();

/// The fast implementation: oneDNN for the matrix products, vectorised loops for the rest. Weights and Ops share
/// memory: destroy the weights first.
std::unique_ptr<Ops> MakeCpuOps(DType activation, const CpuOpsOptions& options);

}  // namespace quicksilver
