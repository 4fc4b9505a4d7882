#include <bit>
#include <cstring>
#include <string>

#include "tests/support/cuda_twin/engine.h"
#include "tests/support/cuda_twin/memory.h"

namespace quicksilver::cuda_twin {
namespace {

struct ShufflePayload {
  uint64_t bits;
  uint64_t result;
  int source;
  int width;
};

// PTX, shfl.sync: a lane of another segment of `width` lanes is out of range, and then a lane keeps its own value; only
// the xor form may reach back into an earlier segment.
int ShuffleSource(Rendezvous kind, int lane, int source, int width) {
  const int segment = lane & ~(width - 1);
  const int last = segment + width - 1;
  switch (kind) {
    case Rendezvous::kShuffle:
      return segment | (source & (width - 1));
    case Rendezvous::kShuffleXor:
      return (lane ^ source) <= last ? lane ^ source : lane;
    case Rendezvous::kShuffleUp:
      return lane - source >= segment ? lane - source : lane;
    default:
      return lane + source <= last ? lane + source : lane;
  }
}

template <Rendezvous kKind>
void CompleteShuffle(void* const* payloads) {
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    auto* own = static_cast<ShufflePayload*>(payloads[lane]);
    const int source = ShuffleSource(kKind, lane, own->source, own->width);
    own->result = static_cast<const ShufflePayload*>(payloads[source])->bits;
  }
}

struct VotePayload {
  bool predicate;
  uint32_t result;
};

void CompleteVote(void* const* payloads) {
  uint32_t ballot = 0;
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    if (static_cast<const VotePayload*>(payloads[lane])->predicate) ballot |= uint32_t{1} << lane;
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) static_cast<VotePayload*>(payloads[lane])->result = ballot;
}

struct MmaPayload {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

float LowHalf(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
float HighHalf(uint32_t pair) { return std::bit_cast<float>(pair & 0xFFFF0000u); }

// Products of two bf16 are exact in float; they are added in the order of k. The hardware adds several at a time, with
// fewer guard bits than this and in an order of its own.
void CompleteMma(void* const* payloads) {
  float a[16][16];  // [k][row]
  float b[16][8];   // [k][column]
  float d[16][8];
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const auto* own = static_cast<const MmaPayload*>(payloads[lane]);
    const int g = lane / 4;
    const int t = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2);
      const int k = 2 * t + 8 * (i / 2);
      a[k][row] = LowHalf(own->a[i]);
      a[k + 1][row] = HighHalf(own->a[i]);
      d[row][2 * t + i / 2] = own->d[2 * (i % 2) + i / 2];
    }
    for (int i = 0; i < 2; ++i) {
      b[2 * t + 8 * i][g] = LowHalf(own->b[i]);
      b[2 * t + 8 * i + 1][g] = HighHalf(own->b[i]);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[k][row] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    float* own = static_cast<const MmaPayload*>(payloads[lane])->d;
    const int g = lane / 4;
    const int t = lane % 4;
    own[0] = d[g][2 * t];
    own[1] = d[g][2 * t + 1];
    own[2] = d[g + 8][2 * t];
    own[3] = d[g + 8][2 * t + 1];
  }
}

struct LoadMatrixPayload {
  uint32_t* r;
  const void* row;
};

template <bool kTransposed>
void CompleteLoadMatrix(void* const* payloads) {
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      std::memcpy(matrix[row], static_cast<const LoadMatrixPayload*>(payloads[8 * m + row])->row, 16);
    }
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      const int i = lane / 4;
      const int j = 2 * (lane % 4);
      const uint32_t low = kTransposed ? matrix[j][i] : matrix[i][j];
      const uint32_t high = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
      static_cast<const LoadMatrixPayload*>(payloads[lane])->r[m] = low | (high << 16);
    }
  }
}

}  // namespace

uint64_t WarpShuffle(Rendezvous kind, uint32_t mask, uint64_t bits, int source, int width) {
  if (width < 1 || width > kWarpThreads || !std::has_single_bit(static_cast<unsigned>(width))) {
    KernelError("a shuffle whose width is not a power of two up to 32");
  }
  ShufflePayload payload{bits, 0, source, width};
  CompleteFunction complete = CompleteShuffle<Rendezvous::kShuffle>;
  if (kind == Rendezvous::kShuffleXor) complete = CompleteShuffle<Rendezvous::kShuffleXor>;
  if (kind == Rendezvous::kShuffleUp) complete = CompleteShuffle<Rendezvous::kShuffleUp>;
  if (kind == Rendezvous::kShuffleDown) complete = CompleteShuffle<Rendezvous::kShuffleDown>;
  JoinWarp(kind, mask, static_cast<uint64_t>(width), &payload, complete);
  return payload.result;
}

uint32_t WarpBallot(uint32_t mask, bool predicate) {
  VotePayload payload{predicate, 0};
  JoinWarp(Rendezvous::kVote, mask, 0, &payload, CompleteVote);
  return payload.result;
}

void WarpMmaBf16(float* d, const uint32_t* a, const uint32_t* b) {
  MmaPayload payload{d, a, b};
  JoinWarp(Rendezvous::kMma, kFullMask, 0, &payload, CompleteMma);
}

void WarpLoadMatrix4(uint32_t* r, const void* shared_row, bool transposed) {
  CheckShared(shared_row, 16, 16, transposed ? "LoadMatrix4Transposed()" : "LoadMatrix4()");
  RecordAccess(shared_row, 16, false, false);
  LoadMatrixPayload payload{r, shared_row};
  if (transposed) {
    JoinWarp(Rendezvous::kLoadMatrixTransposed, kFullMask, 0, &payload, CompleteLoadMatrix<true>);
  } else {
    JoinWarp(Rendezvous::kLoadMatrix, kFullMask, 0, &payload, CompleteLoadMatrix<false>);
  }
}

void CheckShared(const void* pointer, size_t bytes, size_t alignment, const char* operation) {
  const auto* block = current_thread->block;
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  const auto begin = reinterpret_cast<uintptr_t>(block->shared);
  if (at % alignment != 0) KernelError((std::string(operation) + ": misaligned shared memory").c_str(), pointer);
  if (at < begin || at + bytes > begin + block->shared_bytes) {
    KernelError((std::string(operation) + ": outside of the block's shared memory").c_str(), pointer);
  }
}

// A copy is done as late as the program allows, and its target is poisoned until then, so that a read before the wait
// and a copy over something still in use both show.
void StartCopy16(void* shared, const void* global, bool valid) {
  CheckShared(shared, 16, 16, "CopyAsync16()");
  if (valid) {
    if (reinterpret_cast<uintptr_t>(global) % 16 != 0) KernelError("CopyAsync16(): misaligned global memory", global);
    if (!IsDeviceVisible(global, 16)) KernelError("CopyAsync16(): reads outside of all allocations", global);
  }
  // It may write at any time until the wait.
  RecordAccess(shared, 16, true, false);
  if (valid) RecordAccess(global, 16, false, false);
  std::memset(shared, 0xFF, 16);
  auto* thread = static_cast<ThreadState*>(current_thread);
  thread->copies.push_back({shared, global, valid, thread->groups_committed});
}

void CommitCopies() { ++static_cast<ThreadState*>(current_thread)->groups_committed; }

void WaitForCopies(int groups_left) {
  auto* thread = static_cast<ThreadState*>(current_thread);
  const int end = thread->groups_committed - groups_left;
  size_t done = 0;
  while (done < thread->copies.size() && thread->copies[done].group < end) {
    const PendingCopy& copy = thread->copies[done++];
    RecordAccess(copy.shared, 16, true, false);
    if (copy.valid) {
      std::memcpy(copy.shared, copy.global, 16);
    } else {
      std::memset(copy.shared, 0, 16);
    }
  }
  thread->copies.erase(thread->copies.begin(), thread->copies.begin() + static_cast<ptrdiff_t>(done));
}

}  // namespace quicksilver::cuda_twin
