#pragma once

#include <cstddef>
#include <cstdint>

#include "tests/support/cuda_twin/include/vector_types.h"

namespace quicksilver::cuda_twin {

// How kernels run: every CUDA thread is a fiber of the calling OS thread. A fiber runs until it has to wait for the
// others of its warp or block; when the last one arrives, all go on, in an order that a seed decides.

inline constexpr int kWarpThreads = 32;
inline constexpr uint32_t kFullMask = 0xFFFFFFFFu;

/// What threads can wait for together.
enum class Rendezvous : uint8_t {
  kNone,
  kSyncThreads,
  kSyncWarp,
  kShuffle,
  kShuffleXor,
  kShuffleUp,
  kShuffleDown,
  kVote,
  kMma,
  kLoadMatrix,
  kLoadMatrixTransposed,
};

class Block;
class Warp;

/// One running CUDA thread.
struct Thread {
  uint3 thread_index{};
  uint3 block_index{};
  int lane = 0;
  int linear_index = 0;  ///< In the block.
  unsigned char* shared_memory = nullptr;
  Warp* warp = nullptr;
  Block* block = nullptr;
};

/// The thread that runs now; null outside of a kernel.
inline constinit thread_local Thread* current_thread = nullptr;

/// Joins the other 31 lanes at one warp operation. All must name the same `kind` and `parameter`. The last one to
/// arrive calls complete(payloads), the payloads by lane; nobody returns before.
using CompleteFunction = void (*)(void* const* payloads);
void JoinWarp(Rendezvous kind, uint32_t mask, uint64_t parameter, void* payload, CompleteFunction complete);

/// __syncthreads(), with how many threads said `predicate`.
int JoinBlock(bool predicate);

/// Lets the other threads of the launch run, and the other OS threads when all of them spin.
void Pause();

/// Deferred copies (cp.async) of the current thread.
void StartCopy16(void* shared, const void* global, bool valid);
void CommitCopies();
void WaitForCopies(int groups_left);

/// Says that the kernel does what the hardware forbids or leaves undefined, with its name, block and thread; aborts.
[[noreturn]] void KernelError(const char* what, const void* pointer = nullptr);

/// Aborts unless `bytes` at `pointer` lie in the block's shared memory and are aligned to `alignment`.
void CheckShared(const void* pointer, size_t bytes, size_t alignment, const char* operation);

/// What a launch runs: `invoke(arguments)` once a thread.
struct KernelCall {
  const void* function = nullptr;  ///< For its name.
  void (*invoke)(const void* arguments) = nullptr;
  const void* arguments = nullptr;
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  bool cooperative = false;
};

/// Runs all blocks to their end.
void RunKernel(const KernelCall& call);

// The warp's matrix instructions; fragments as PTX lays them out (kernels/cuda/ptx.h).
void WarpMmaBf16(float* d, const uint32_t* a, const uint32_t* b);
void WarpLoadMatrix4(uint32_t* r, const void* shared_row, bool transposed);

/// __shfl_*_sync on the raw bits of 4- or 8-byte values. `source` by kind: lane, xor mask or delta.
uint64_t WarpShuffle(Rendezvous kind, uint32_t mask, uint64_t bits, int source, int width);

/// __ballot_sync.
uint32_t WarpBallot(uint32_t mask, bool predicate);

}  // namespace quicksilver::cuda_twin
