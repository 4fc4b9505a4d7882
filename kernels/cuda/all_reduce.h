#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace quicksilver {

// Collectives between devices that can write to each other's memory. Every rank writes what its peers need into their
// memory and raises a flag there; then it reads only its own. A block talks only to the block of the same number on the
// other ranks, so the blocks of a launch need not run at the same time, and messages of any size pass through a region
// of fixed size, slice by slice. Slots come in two halves that take turns: who raises the flag of exchange e has read
// everything of exchange e - 1, so its slots for e + 1 are free and no barrier is needed at the end.
//
// Two ranks may share one device, also as two processes. Without MPS such processes take turns on the device, so a wait
// lasts for the time slices of the others: correct, but slow.

inline constexpr int kExchangeRanksMax = 8;
inline constexpr int kExchangeBlocks = 32;  ///< At most, of one launch: few enough to be resident beside anything else.
inline constexpr size_t kExchangeSlotBytes = 32 << 10;
inline constexpr size_t kExchangeBytesMax = (size_t{1} << 30) - 1;  ///< Of one message.

/// What one block of a peer has told the same block of this rank.
struct ExchangeArrival {
  uint32_t exchange = 0;       ///< Number of the newest exchange whose bytes are here. Written last.
  uint32_t signature[2] = {};  ///< By parity of the exchange: operation and size, equal on all ranks.
  uint32_t padding = 0;
};

/// The device memory of one rank. Zero at first.
struct ExchangeRegion {
  uint32_t exchanges[kExchangeBlocks];  ///< Done by each block. Only the owner touches this.
  uint32_t failed;                      ///< 1 after the first failure. Only the owner touches this.
  ExchangeArrival arrivals[kExchangeBlocks][kExchangeRanksMax];
  alignas(128) unsigned char slots[2][kExchangeBlocks][kExchangeRanksMax][kExchangeSlotBytes];
};

enum class ExchangeFailure : uint32_t { kNone, kSilent, kAborted, kDiverged };

/// Host memory that the device sees.
struct ExchangeReport {
  uint32_t abort = 0;    ///< Written by the host: whoever waits gives up.
  uint32_t failure = 0;  ///< ExchangeFailure, written last. Nothing is waited for after the first failure.
  uint32_t peer = 0;
  uint32_t expected = 0, found = 0;  ///< Signatures, of kDiverged.
};

/// A rank's view of its group; what a launch (and a captured graph) carries.
struct Exchange {
  ExchangeRegion* regions[kExchangeRanksMax] = {};  ///< By rank, as this process sees them.
  ExchangeReport* report = nullptr;
  int32_t rank = 0;
  int32_t ranks = 1;
  uint64_t timeout_nanoseconds = 0;  ///< Of one wait.
};

/// Operation and size in one word, and back for messages.
constexpr uint32_t ExchangeSignature(bool gather, size_t bytes) {
  return static_cast<uint32_t>(bytes) << 1 | (gather ? 1u : 0u);
}
constexpr bool IsGather(uint32_t signature) { return (signature & 1u) != 0; }
constexpr uint32_t SignatureBytes(uint32_t signature) { return signature >> 1; }

/// x = x_0 + x_1 + … in rank order in float, rounded once. One shot: every rank sends all of x to every other. Two
/// shots: rank r sums the r-th part of each slice and sends the sum. The bits are the same.
cudaError_t LaunchAllReduce(const Exchange& group, void* x, int64_t elements, DType dtype, bool two_shots,
                            cudaStream_t stream);

/// out = the `bytes` of every rank, in rank order. `in` may be this rank's place in `out`.
cudaError_t LaunchAllGather(const Exchange& group, const void* in, void* out, size_t bytes, cudaStream_t stream);

/// out[i] = parts[0, i] + parts[1, i] + … in this order in float, rounded once. parts: [ranks, elements], out:
/// [elements], both aligned to an element.
cudaError_t LaunchRankOrderSum(const void* parts, int32_t ranks, int64_t elements, DType dtype, void* out,
                               cudaStream_t stream);

}  // namespace quicksilver
