#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/support/cuda_twin/execution.h"
#include "tests/support/cuda_twin/fiber.h"
#include "tests/support/cuda_twin/race_check.h"

namespace quicksilver::cuda_twin {

/// One cp.async that waits to be done.
struct PendingCopy {
  void* shared;
  const void* global;
  bool valid;
  int group;
};

struct ThreadState : Thread {
  Fiber* fiber = nullptr;  ///< Where it waits; null before it begins and while it runs.
  std::vector<PendingCopy> copies;
  int groups_committed = 0;
};

class Warp {
 public:
  Block* block = nullptr;
  int first_thread = 0;
  uint32_t exists = 0;    ///< Lanes, one bit each, here and below.
  uint32_t ready = 0;     ///< May run: not begun, or released.
  uint32_t spinning = 0;  ///< Gave way in a polling loop.
  uint32_t exited = 0;
  uint32_t at_barrier = 0;
  uint32_t arrived = 0;  ///< At the warp operation described by the rest.
  Rendezvous kind = Rendezvous::kNone;
  uint64_t parameter = 0;
  uint32_t turn = 0;  ///< Number of __syncwarp() since the last barrier.
  void* payloads[kWarpThreads] = {};
};

/// Dynamic shared memory with an unmapped page behind it.
class SharedMemoryArea {
 public:
  SharedMemoryArea();
  ~SharedMemoryArea();
  SharedMemoryArea(const SharedMemoryArea&) = delete;
  SharedMemoryArea& operator=(const SharedMemoryArea&) = delete;

  /// Poisons `bytes` and returns them, aligned to 128.
  unsigned char* Begin(size_t bytes);
  /// False when the slack up to the guard page was written.
  bool IntactBehind() const;

 private:
  unsigned char* memory_;
  unsigned char* begin_ = nullptr;
  size_t bytes_ = 0;
};

class Block {
 public:
  uint64_t number = 0;  ///< In the order of starting.
  uint3 index{};
  std::vector<ThreadState> threads;
  std::vector<Warp> warps;
  SharedMemoryArea shared_area;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  int arrived = 0;  ///< At the barrier.
  int predicates = 0;
  int predicates_result = 0;
  int exited = 0;
  uint32_t interval = 0;  ///< Between two barriers. No other block has it.
  bool acquired = false;  ///< Has read something atomically.
  std::vector<AccessCell> shared_cells;
};

/// Runs the blocks of one launch at a time. Reused, with its fibers, by later launches of any OS thread; never
/// destroyed.
class Engine {
 public:
  Engine() = default;

  void Run(const KernelCall& call);

  void JoinWarp(Rendezvous kind, uint32_t mask, uint64_t parameter, void* payload, CompleteFunction complete);
  int JoinBlock(bool predicate);
  void Pause();
  bool checks_races() const { return checks_races_; }
  GlobalCells& global_cells() { return global_cells_; }
  /// Whether `interval` is of this launch, but not of the current block.
  bool OfOtherBlock(uint32_t interval) const;
  /// Aborts with a description of what every thread of the resident blocks waits for.
  [[noreturn]] void Fail(const char* what, const void* pointer = nullptr);

 private:
  void StartBlock();
  void NextInterval(Block* block);
  void FinishBlock(Block* block);
  void FiberLoop(Fiber* self);
  void RunThread();
  void Suspend();
  ThreadState* Pick();
  Warp* PickWarp();
  int PickLane(uint32_t lanes);
  bool WakeSpinning();
  void WaitForOthers();
  Fiber* IdleFiber();
  uint3 BlockIndex(uint64_t number) const;
  uint32_t Random();

  const KernelCall* call_ = nullptr;
  uint64_t seed_ = 0;
  uint32_t random_ = 1;
  uint64_t blocks_total_ = 0;
  uint64_t blocks_started_ = 0;
  uint64_t block_stride_ = 1;
  uint64_t block_offset_ = 0;
  size_t resident_wanted_ = 1;
  int live_threads_ = 0;

  std::vector<std::unique_ptr<Block>> resident_;
  std::vector<std::unique_ptr<Block>> spare_blocks_;
  std::vector<Warp*> warps_;  // Of the resident blocks, in running order.
  size_t cursor_ = 0;

  bool checks_races_ = false;
  GlobalCells global_cells_;
  uint32_t first_interval_ = 1;  // Of this launch.
  uint32_t next_interval_ = 1;
  std::vector<uint64_t> interval_blocks_;  // Number of the block, by interval - first_interval_.

  Fiber main_;
  std::vector<Fiber*> idle_;  // Never freed.
  Fiber* running_ = nullptr;

  uint64_t progress_ = 0;
  uint64_t progress_seen_ = 0;
  int fruitless_rounds_ = 0;
  std::chrono::steady_clock::time_point stalled_since_;
};

/// The engine that runs on this OS thread, or null.
inline constinit thread_local Engine* current_engine = nullptr;

}  // namespace quicksilver::cuda_twin
