#include "tests/support/cuda_twin/engine.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>

#include "common/mutex.h"
#include "tests/support/cuda_twin/device_functions.h"
#include "tests/support/cuda_twin/fault_handler.h"
#include "tests/support/cuda_twin/report.h"
#include "tests/support/cuda_twin/settings.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace quicksilver::cuda_twin {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kSharedArea = 232 * 1024;  // >= what a block may ask for, in pages.
constexpr unsigned char kPoison = 0xFF;     // NaN in every float type.
constexpr size_t kResidentBlocksMax = 132;  // As many as the processors of the device: one each is always possible.
constexpr int kRoundsBeforeSleep = 200;
// Most that polls waits for another OS thread, as a rank for another: the fibers of many blocks, one after the other
// started in vain, would use up the process's memory mappings.
constexpr int kRoundsBeforeBlock = 400;

constexpr uint64_t kForward = 0;
constexpr uint64_t kBackward = 1;

uint32_t Bit(int lane) { return uint32_t{1} << lane; }

void SetCurrent(Thread* thread) {
  current_thread = thread;
  threadIdx = thread->thread_index;
  blockIdx = thread->block_index;
}

ThreadState* State(Thread* thread) { return static_cast<ThreadState*>(thread); }

Mutex engines_mu;
std::vector<Engine*>& SpareEngines() {
  static auto* engines = new std::vector<Engine*>;
  return *engines;
}

}  // namespace

SharedMemoryArea::SharedMemoryArea() {
  memory_ = static_cast<unsigned char*>(
      mmap(nullptr, kSharedArea + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory_ == MAP_FAILED || mprotect(memory_ + kSharedArea, kPage, PROT_NONE) != 0) std::abort();
}

SharedMemoryArea::~SharedMemoryArea() { munmap(memory_, kSharedArea + kPage); }

unsigned char* SharedMemoryArea::Begin(size_t bytes) {
  const size_t rounded = (bytes + 127) / 128 * 128;
  begin_ = memory_ + kSharedArea - rounded;
  bytes_ = bytes;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(begin_, rounded);
#endif
  std::memset(begin_, kPoison, rounded);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin_ + bytes, rounded - bytes);
#endif
  return begin_;
}

bool SharedMemoryArea::IntactBehind() const {
#if defined(__SANITIZE_ADDRESS__)
  return true;
#else
  const unsigned char* end = memory_ + kSharedArea;
  return std::all_of(static_cast<const unsigned char*>(begin_) + bytes_, end,
                     [](unsigned char byte) { return byte == kPoison; });
#endif
}

void Engine::Run(const KernelCall& call) {
  call_ = &call;
  seed_ = Execution().thread_order_seed.load(std::memory_order_relaxed);
  random_ = static_cast<uint32_t>(seed_ * 2654435761u) | 1u;
  blocks_total_ = uint64_t{call.grid.x} * call.grid.y * call.grid.z;
  blocks_started_ = 0;
  block_stride_ = 1;
  block_offset_ = 0;
  resident_wanted_ = call.cooperative ? blocks_total_ : 1;
  if (seed_ > kBackward) {
    block_offset_ = Random() % blocks_total_;
    do block_stride_ = 1 + Random() % blocks_total_;
    while (std::gcd(block_stride_, blocks_total_) != 1);
    resident_wanted_ = std::max<size_t>(resident_wanted_, 1 + Random() % 3);
  }
  checks_races_ = Execution().race_check.load(std::memory_order_relaxed);
  first_interval_ = next_interval_;
  interval_blocks_.clear();
  progress_ = progress_seen_ = 0;
  fruitless_rounds_ = 0;
  main_.BindToThread();
  current_engine = this;
  blockDim = call.block;
  gridDim = call.grid;
  while (blocks_started_ < blocks_total_) {
    while (resident_.size() < resident_wanted_ && blocks_started_ < blocks_total_) StartBlock();
    ThreadState* first = Pick();
    Fiber* fiber = IdleFiber();
    SetCurrent(first);
    running_ = fiber;
    main_.SwitchTo(*fiber);  // Back when every resident thread is done.
    while (!resident_.empty()) FinishBlock(resident_.back().get());
  }
  current_thread = nullptr;
  current_engine = nullptr;
}

uint3 Engine::BlockIndex(uint64_t number) const {
  uint64_t i = number;
  if (seed_ == kBackward) i = blocks_total_ - 1 - number;
  if (seed_ > kBackward) i = (number * block_stride_ + block_offset_) % blocks_total_;
  const dim3 grid = call_->grid;
  return {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
          static_cast<unsigned>(i / grid.x / grid.y)};
}

void Engine::StartBlock() {
  if (spare_blocks_.empty()) spare_blocks_.push_back(std::make_unique<Block>());
  resident_.push_back(std::move(spare_blocks_.back()));
  spare_blocks_.pop_back();
  Block& block = *resident_.back();
  const dim3 dim = call_->block;
  const int threads = static_cast<int>(dim.x * dim.y * dim.z);
  block.number = blocks_started_;
  block.index = BlockIndex(blocks_started_++);
  block.acquired = false;
  if (checks_races_) block.shared_cells.resize(std::max(block.shared_cells.size(), call_->shared_bytes + 16));
  NextInterval(&block);
  block.shared_bytes = call_->shared_bytes;
  block.shared = block.shared_area.Begin(call_->shared_bytes);
  block.arrived = block.predicates = block.exited = 0;
  if (block.threads.size() < static_cast<size_t>(threads)) block.threads.resize(threads);
  block.warps.assign((threads + kWarpThreads - 1) / kWarpThreads, Warp());
  for (int i = 0; i < threads; ++i) {
    ThreadState& thread = block.threads[i];
    const unsigned u = static_cast<unsigned>(i);
    thread.thread_index = {u % dim.x, u / dim.x % dim.y, u / dim.x / dim.y};
    thread.block_index = block.index;
    thread.lane = i % kWarpThreads;
    thread.linear_index = i;
    thread.shared_memory = block.shared;
    thread.block = &block;
    thread.warp = &block.warps[i / kWarpThreads];
    thread.fiber = nullptr;
    thread.copies.clear();
    thread.groups_committed = 0;
    thread.warp->exists |= Bit(thread.lane);
  }
  for (size_t w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    warp.block = &block;
    warp.first_thread = static_cast<int>(w) * kWarpThreads;
    warp.ready = warp.exists;
    warps_.push_back(&warp);
  }
  if (seed_ == kBackward) std::reverse(warps_.end() - static_cast<ptrdiff_t>(block.warps.size()), warps_.end());
  live_threads_ += threads;
  ++progress_;
}

void Engine::NextInterval(Block* block) {
  block->interval = next_interval_++;
  if (checks_races_) interval_blocks_.push_back(block->number);
}

bool Engine::OfOtherBlock(uint32_t interval) const {
  return interval >= first_interval_ && interval_blocks_[interval - first_interval_] != current_thread->block->number;
}

void Engine::FinishBlock(Block* block) {
  if (!block->shared_area.IntactBehind()) Fail("wrote behind the end of its shared memory");
  std::erase_if(warps_, [block](const Warp* warp) { return warp->block == block; });
  auto at = std::find_if(resident_.begin(), resident_.end(), [block](const auto& b) { return b.get() == block; });
  spare_blocks_.push_back(std::move(*at));
  resident_.erase(at);
  cursor_ = 0;
}

Fiber* Engine::IdleFiber() {
  if (idle_.empty()) {
    auto** self = new Fiber*;
    *self = new Fiber([this, self] { FiberLoop(*self); });
    return *self;
  }
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return fiber;
}

// A fiber whose thread has ended goes on with the next one that has not begun, so threads that never wait share one.
void Engine::FiberLoop(Fiber* self) {
  for (;;) {
    RunThread();
    ThreadState* next = Pick();
    if (next != nullptr && next->fiber == nullptr) {
      SetCurrent(next);
      continue;
    }
    idle_.push_back(self);
    Fiber* to = &main_;
    if (next != nullptr) {
      to = next->fiber;
      next->fiber = nullptr;
      SetCurrent(next);
    }
    running_ = to;
    self->SwitchTo(*to);
  }
}

void Engine::RunThread() {
  call_->invoke(call_->arguments);
  ThreadState* thread = State(current_thread);
  Warp* warp = thread->warp;
  warp->exited |= Bit(thread->lane);
  if (warp->arrived != 0) Fail("a thread has ended while others of its warp wait for it");
  ++thread->block->exited;
  if (thread->block->arrived != 0) Fail("a thread has ended while others of its block wait for it at __syncthreads()");
  --live_threads_;
  ++progress_;
}

// The current thread waits; returns when it is its turn again.
void Engine::Suspend() {
  ThreadState* thread = State(current_thread);
  ThreadState* next = Pick();
  if (next == thread) return;
  Fiber* from = running_;
  thread->fiber = from;
  Fiber* to = next->fiber;
  next->fiber = nullptr;
  if (to == nullptr) to = IdleFiber();
  SetCurrent(next);
  running_ = to;
  from->SwitchTo(*to);
}

uint32_t Engine::Random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  return random_;
}

int Engine::PickLane(uint32_t lanes) {
  if (seed_ == kForward) return std::countr_zero(lanes);
  if (seed_ == kBackward) return 31 - std::countl_zero(lanes);
  const int turn = static_cast<int>(Random() % kWarpThreads);
  return (std::countr_zero(std::rotr(lanes, turn)) + turn) % kWarpThreads;
}

// Stays with a warp while it can run; a shuffled order also leaves it at random.
Warp* Engine::PickWarp() {
  if (cursor_ < warps_.size() && warps_[cursor_]->ready != 0 && (seed_ <= kBackward || Random() % 8 != 0)) {
    return warps_[cursor_];
  }
  const size_t count = warps_.size();
  size_t at = seed_ > kBackward ? Random() % count : cursor_;
  for (size_t i = 0; i < count; ++i) {
    if (at >= count) at = 0;
    if (warps_[at]->ready != 0) {
      cursor_ = at;
      return warps_[at];
    }
    ++at;
  }
  return nullptr;
}

// The next thread to run, or null when all are done.
ThreadState* Engine::Pick() {
  if (live_threads_ == 0) return nullptr;
  Warp* warp = PickWarp();
  while (warp == nullptr) {
    if (!WakeSpinning()) Fail("deadlock: every thread waits");
    warp = PickWarp();
  }
  const int lane = PickLane(warp->ready);
  warp->ready &= ~Bit(lane);
  return &warp->block->threads[warp->first_thread + lane];
}

// All threads that can run poll memory. Whoever changes it may be a block that has not begun, or another OS thread.
bool Engine::WakeSpinning() {
  const bool any = std::any_of(warps_.begin(), warps_.end(), [](const Warp* warp) { return warp->spinning != 0; });
  if (!any) return false;
  if (progress_ != progress_seen_) {
    progress_seen_ = progress_;
    fruitless_rounds_ = 0;
    stalled_since_ = std::chrono::steady_clock::now();
  } else {
    WaitForOthers();
  }
  for (Warp* warp : warps_) {
    warp->ready |= warp->spinning;
    warp->spinning = 0;
  }
  return true;
}

void Engine::WaitForOthers() {
  ++fruitless_rounds_;
  if (fruitless_rounds_ % kRoundsBeforeBlock == 0 && blocks_started_ < blocks_total_ &&
      resident_.size() < kResidentBlocksMax) {
    StartBlock();
    return;
  }
  if (fruitless_rounds_ % kRoundsBeforeBlock < kRoundsBeforeSleep) {
    sched_yield();
    return;
  }
  std::this_thread::sleep_for(std::chrono::microseconds(20));
  const int seconds_max = Execution().spin_seconds_max.load(std::memory_order_relaxed);
  if (std::chrono::steady_clock::now() - stalled_since_ > std::chrono::seconds(seconds_max)) {
    Fail("deadlock: threads poll memory that nobody changes");
  }
}

void Engine::JoinWarp(Rendezvous kind, uint32_t mask, uint64_t parameter, void* payload, CompleteFunction complete) {
  ThreadState* thread = State(current_thread);
  Warp* warp = thread->warp;
  if (mask != kFullMask) Fail("a warp operation whose mask is not full");
  if (warp->exists != kFullMask) Fail("a warp operation in a warp of fewer than 32 threads");
  if (warp->exited != 0) Fail("a warp operation after a thread of the warp has ended");
  if (warp->arrived == 0) {
    warp->kind = kind;
    warp->parameter = parameter;
  } else if (warp->kind != kind || warp->parameter != parameter) {
    Fail("threads of one warp are at different warp operations");
  }
  warp->arrived |= Bit(thread->lane);
  warp->payloads[thread->lane] = payload;
  if (warp->arrived == kFullMask) {
    if (complete != nullptr) complete(warp->payloads);
    warp->arrived = 0;
    warp->kind = Rendezvous::kNone;
    if (kind == Rendezvous::kSyncWarp) ++warp->turn;
    warp->ready = kFullMask;
    ++progress_;
  }
  Suspend();
}

int Engine::JoinBlock(bool predicate) {
  ThreadState* thread = State(current_thread);
  Block* block = thread->block;
  if (block->exited != 0) Fail("__syncthreads() after a thread of the block has ended");
  thread->warp->at_barrier |= Bit(thread->lane);
  block->predicates += predicate ? 1 : 0;
  if (++block->arrived == static_cast<int>(call_->block.x * call_->block.y * call_->block.z)) {
    block->arrived = 0;
    block->predicates_result = block->predicates;
    block->predicates = 0;
    for (Warp& warp : block->warps) {
      warp.ready = warp.exists;
      warp.at_barrier = 0;
      warp.turn = 0;
    }
    NextInterval(block);
    const Warp* first = seed_ == kBackward ? &block->warps.back() : &block->warps.front();
    cursor_ = static_cast<size_t>(std::find(warps_.begin(), warps_.end(), first) - warps_.begin());
    ++progress_;
  }
  Suspend();
  return block->predicates_result;
}

void Engine::Pause() {
  ThreadState* thread = State(current_thread);
  thread->warp->spinning |= Bit(thread->lane);
  Suspend();
}

void Engine::Fail(const char* what, const void* pointer) {
  std::vector<const Block*> blocks;
  for (const auto& block : resident_) blocks.push_back(block.get());
  ReportKernelError(*call_, blocks, State(current_thread), what, pointer);
}

void RunKernel(const KernelCall& call) {
  ReportFaultsOfKernels();
  Engine* engine = nullptr;
  {
    MutexLock lock(engines_mu);
    if (!SpareEngines().empty()) {
      engine = SpareEngines().back();
      SpareEngines().pop_back();
    }
  }
  if (engine == nullptr) engine = new Engine;
  engine->Run(call);
  MutexLock lock(engines_mu);
  SpareEngines().push_back(engine);
}

void JoinWarp(Rendezvous kind, uint32_t mask, uint64_t parameter, void* payload, CompleteFunction complete) {
  current_engine->JoinWarp(kind, mask, parameter, payload, complete);
}

int JoinBlock(bool predicate) { return current_engine->JoinBlock(predicate); }

void Pause() {
  if (current_engine != nullptr) current_engine->Pause();
}

void KernelError(const char* what, const void* pointer) { current_engine->Fail(what, pointer); }

}  // namespace quicksilver::cuda_twin
