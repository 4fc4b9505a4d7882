#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace quicksilver::cuda_twin {

// Finds accesses of two threads of a kernel to the same byte, one of them a write, that no barrier orders. The kernels
// are compiled with -fsanitize=thread, whose calls at every access end here instead of in its own library.
//
// __syncthreads() orders all accesses of a block before it and after it, and __syncwarp() those of a warp; shuffles,
// votes and matrix instructions order nothing, as on the device. Accesses of different blocks are ordered by nothing
// either, unless the later block has read a flag or counter atomically before: then they count as ordered.

/// Who touched a byte last. An interval is what lies between two barriers of one block; numbers are never reused. The
/// first cell of an aligned word speaks for its four bytes until one of them is touched alone.
struct AccessCell {
  static constexpr uint16_t kSeveralThreads = 0x8000;  ///< Added to one of them: others of its warp read too.
  static constexpr uint16_t kSeveralWarps = 0xFFFF;
  static constexpr uint16_t kAtomic = 0x8000;
  static constexpr uint16_t kSplit = 0x8000;

  uint32_t write_interval = 0;
  uint16_t write_thread = 0;
  uint16_t write_turn = 0;  ///< Number of the __syncwarp() in the interval; kAtomic is added.
  uint32_t read_interval = 0;
  uint16_t read_thread = 0;
  uint16_t read_turn = 0;  ///< In the first cell of a word, kSplit is added when the others speak for themselves.
};

/// The cells of global memory: those of the last use of each of so many places. Others are forgotten, not mixed up.
class GlobalCells {
 public:
  /// The cells of the 8 bytes at `granule` * 8.
  AccessCell* Find(uintptr_t granule);

 private:
  static constexpr size_t kPlaces = size_t{1} << 16;
  struct Place {
    uintptr_t granule = 0;
    AccessCell cells[8];
  };
  std::vector<Place> places_;
};

/// Records an access of the current thread. Aborts when it races with an earlier one.
void RecordAccess(const void* pointer, size_t bytes, bool write, bool atomic);

/// The current block has read something that another block may have published.
void RecordAcquire();

}  // namespace quicksilver::cuda_twin
