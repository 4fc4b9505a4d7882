#include "tests/support/cuda_twin/race_check.h"

#include <algorithm>
#include <string>

#include "tests/support/cuda_twin/device_functions.h"
#include "tests/support/cuda_twin/engine.h"
#include "tests/support/cuda_twin/settings.h"

namespace quicksilver::cuda_twin {
namespace {

constexpr uintptr_t kStackReach = 64 * 1024;  // Of a fiber.
constexpr uintptr_t kBuiltInReach = 128;      // threadIdx and its like lie together.

struct Access {
  uint32_t interval;
  uint16_t thread;
  uint16_t turn;
  bool write;
  bool atomic;
};

int WarpOf(int thread) { return thread / kWarpThreads; }

std::string Name(const Block& block, int thread) {
  const uint3 t = block.threads[static_cast<size_t>(thread)].thread_index;
  return "thread (" + std::to_string(t.x) + ", " + std::to_string(t.y) + ", " + std::to_string(t.z) + ")";
}

[[noreturn]] void Report(const AccessCell& cell, bool with_write, const Access& access, bool shared, bool other_block,
                         const void* pointer) {
  const Block& block = *current_thread->block;
  const uint16_t thread = with_write ? cell.write_thread : cell.read_thread;
  std::string earlier = "several warps";
  if (with_write || thread != AccessCell::kSeveralWarps) {
    earlier = Name(block, thread & ~AccessCell::kSeveralThreads & 0x7FFF);
  }
  if (other_block) earlier += " of another block";
  std::string text = "race: " + Name(block, access.thread) + (access.write ? " writes" : " reads") + " what " +
                     earlier + (with_write ? " wrote" : " read") + ", and no barrier is between; " +
                     (shared ? "shared memory at byte " : "global memory");
  if (shared) text += std::to_string(static_cast<const unsigned char*>(pointer) - block.shared);
  KernelError(text.c_str(), pointer);
}

// Whether the accesses of one interval of one block are unordered. `turn` of the earlier one.
bool Unordered(const Access& access, int earlier_thread, uint16_t earlier_turn) {
  if (WarpOf(earlier_thread) != WarpOf(access.thread)) return true;
  return earlier_turn == access.turn && earlier_thread != access.thread;
}

bool RacesWithReads(const AccessCell& cell, const Access& access) {
  if (cell.read_thread == AccessCell::kSeveralWarps) return true;
  const int reader = cell.read_thread & 0x7FFF;
  if (WarpOf(reader) != WarpOf(access.thread)) return true;
  const bool several = (cell.read_thread & AccessCell::kSeveralThreads) != 0;
  return cell.read_turn == access.turn && (several || reader != access.thread);
}

void RememberRead(AccessCell* cell, const Access& access) {
  if (cell->read_interval == access.interval) {
    if (cell->read_thread == AccessCell::kSeveralWarps) return;
    const int reader = cell->read_thread & 0x7FFF;
    if (WarpOf(reader) != WarpOf(access.thread)) {
      cell->read_thread = AccessCell::kSeveralWarps;
      return;
    }
    if (cell->read_turn == access.turn) {
      if (reader != access.thread) cell->read_thread |= AccessCell::kSeveralThreads;
      return;
    }
  }
  cell->read_interval = access.interval;
  cell->read_thread = access.thread;
  cell->read_turn = access.turn;
}

// `shared`: the cell is of one block, whose earlier intervals are all ordered before.
void Check(AccessCell* cell, const Access& access, bool shared, const void* pointer) {
  const auto other_block = [&](uint32_t interval) {
    return !shared && !current_thread->block->acquired && current_engine->OfOtherBlock(interval);
  };
  const bool both_atomic = access.atomic && (cell->write_turn & AccessCell::kAtomic) != 0;
  if (cell->write_interval != 0 && !both_atomic) {
    const auto turn = static_cast<uint16_t>(cell->write_turn & ~AccessCell::kAtomic);
    if (cell->write_interval == access.interval) {
      if (Unordered(access, cell->write_thread, turn)) Report(*cell, true, access, shared, false, pointer);
    } else if (other_block(cell->write_interval)) {
      Report(*cell, true, access, shared, true, pointer);
    }
  }
  if (!access.write) {
    if (!access.atomic) RememberRead(cell, access);
    return;
  }
  if (cell->read_interval != 0) {
    if (cell->read_interval == access.interval) {
      if (RacesWithReads(*cell, access)) Report(*cell, false, access, shared, false, pointer);
    } else if (other_block(cell->read_interval)) {
      Report(*cell, false, access, shared, true, pointer);
    }
  }
  cell->write_interval = access.interval;
  cell->write_thread = access.thread;
  cell->write_turn = static_cast<uint16_t>(access.turn | (access.atomic ? AccessCell::kAtomic : 0));
}

// `count` bytes from `first` of the aligned word whose four cells these are.
void CheckWord(AccessCell* cells, size_t first, size_t count, const Access& access, bool shared, const void* pointer) {
  const bool split = (cells->read_turn & AccessCell::kSplit) != 0;
  if (count == 4 && !split) {
    Check(cells, access, shared, pointer);
    return;
  }
  if (!split) cells[1] = cells[2] = cells[3] = cells[0];
  cells->read_turn &= static_cast<uint16_t>(~AccessCell::kSplit);
  for (size_t i = first; i < first + count; ++i) Check(cells + i, access, shared, pointer);
  const bool whole = count == 4 && access.write;  // Any later race with the earlier reads is one with this write.
  if (!whole) cells->read_turn |= AccessCell::kSplit;
}

}  // namespace

AccessCell* GlobalCells::Find(uintptr_t granule) {
  if (places_.empty()) places_.resize(kPlaces);
  Place& place = places_[granule % kPlaces];
  if (place.granule != granule) {
    place = Place();
    place.granule = granule;
  }
  return place.cells;
}

void RecordAccess(const void* pointer, size_t bytes, bool write, bool atomic) {
  Thread* thread = current_thread;
  if (thread == nullptr || !current_engine->checks_races()) return;
  const Block& block = *thread->block;
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  const Access access{block.interval, static_cast<uint16_t>(thread->linear_index),
                      static_cast<uint16_t>(thread->warp->turn & 0x7FFF), write, atomic};
  const uintptr_t begin = reinterpret_cast<uintptr_t>(block.shared);
  const bool shared = at - begin < block.shared_bytes;
  const auto frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
  if (!shared && at - frame + kStackReach < 2 * kStackReach) return;  // A local variable.
  const auto built_in = reinterpret_cast<uintptr_t>(&threadIdx);
  if (at - built_in + kBuiltInReach < 2 * kBuiltInReach) return;
  AccessCell* shared_cells = thread->block->shared_cells.data();
  for (uintptr_t byte = at; byte < at + bytes;) {
    const size_t first = byte % 4;
    const size_t count = std::min(4 - first, at + bytes - byte);
    const uintptr_t word = byte - first;
    AccessCell* cells =
        shared ? shared_cells + (word - begin) : current_engine->global_cells().Find(word / 8) + word % 8;
    CheckWord(cells, first, count, access, shared, pointer);
    byte += count;
  }
}

void RecordAcquire() {
  if (current_thread != nullptr) current_thread->block->acquired = true;
}

}  // namespace quicksilver::cuda_twin

#if !defined(__SANITIZE_THREAD__)

// What the compiler calls.

using quicksilver::cuda_twin::RecordAccess;
using quicksilver::cuda_twin::RecordAcquire;

#define QS_TWIN_ACCESS(bytes)                                                          \
  void __tsan_read##bytes(void* p) { RecordAccess(p, bytes, false, false); }           \
  void __tsan_write##bytes(void* p) { RecordAccess(p, bytes, true, false); }           \
  void __tsan_unaligned_read##bytes(void* p) { RecordAccess(p, bytes, false, false); } \
  void __tsan_unaligned_write##bytes(void* p) { RecordAccess(p, bytes, true, false); } \
  void __tsan_volatile_read##bytes(void* p) { RecordAccess(p, bytes, false, false); }  \
  void __tsan_volatile_write##bytes(void* p) { RecordAccess(p, bytes, true, false); }

#define QS_TWIN_UPDATE(bits, type, name)                             \
  type __tsan_atomic##bits##_##name(volatile type* p, type v, int) { \
    RecordAccess(const_cast<type*>(p), bits / 8, true, true);        \
    RecordAcquire();                                                 \
    return __atomic_##name(p, v, __ATOMIC_SEQ_CST);                  \
  }

#define QS_TWIN_ATOMIC(bits, type)                                                                           \
  type __tsan_atomic##bits##_load(const volatile type* p, int) {                                             \
    RecordAccess(const_cast<type*>(p), bits / 8, false, true);                                               \
    RecordAcquire();                                                                                         \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                             \
  }                                                                                                          \
  void __tsan_atomic##bits##_store(volatile type* p, type v, int) {                                          \
    RecordAccess(const_cast<type*>(p), bits / 8, true, true);                                                \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                                                \
  }                                                                                                          \
  type __tsan_atomic##bits##_exchange(volatile type* p, type v, int) {                                       \
    RecordAccess(const_cast<type*>(p), bits / 8, true, true);                                                \
    RecordAcquire();                                                                                         \
    return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST);                                                      \
  }                                                                                                          \
  bool __tsan_atomic##bits##_compare_exchange_strong(volatile type* p, type* expected, type v, int, int) {   \
    RecordAccess(const_cast<type*>(p), bits / 8, true, true);                                                \
    RecordAcquire();                                                                                         \
    return __atomic_compare_exchange_n(p, expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);           \
  }                                                                                                          \
  bool __tsan_atomic##bits##_compare_exchange_weak(volatile type* p, type* expected, type v, int s, int f) { \
    return __tsan_atomic##bits##_compare_exchange_strong(p, expected, v, s, f);                              \
  }                                                                                                          \
  QS_TWIN_UPDATE(bits, type, fetch_add)                                                                      \
  QS_TWIN_UPDATE(bits, type, fetch_sub)                                                                      \
  QS_TWIN_UPDATE(bits, type, fetch_and)                                                                      \
  QS_TWIN_UPDATE(bits, type, fetch_or)                                                                       \
  QS_TWIN_UPDATE(bits, type, fetch_xor)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_read_range(void* p, size_t bytes) { RecordAccess(p, bytes, false, false); }
void __tsan_write_range(void* p, size_t bytes) { RecordAccess(p, bytes, true, false); }
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
QS_TWIN_ACCESS(1)
QS_TWIN_ACCESS(2)
QS_TWIN_ACCESS(4)
QS_TWIN_ACCESS(8)
QS_TWIN_ACCESS(16)
QS_TWIN_ATOMIC(8, unsigned char)
QS_TWIN_ATOMIC(16, unsigned short)
QS_TWIN_ATOMIC(32, unsigned int)
QS_TWIN_ATOMIC(64, unsigned long long)

}  // extern "C"

#endif
