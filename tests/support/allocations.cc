#include "tests/support/allocations.h"

#include <cstdlib>
#include <new>

// The linker's names for the program's own code.
extern "C" const char __executable_start;
extern "C" const char etext;

namespace quicksilver {

std::atomic<size_t> largest_allocation{0};
std::atomic<size_t> own_allocations{0};

namespace {

void Note(size_t bytes, const void* caller) {
  size_t largest = largest_allocation.load(std::memory_order_relaxed);
  while (bytes > largest && !largest_allocation.compare_exchange_weak(largest, bytes, std::memory_order_relaxed)) {
  }
  const char* const address = static_cast<const char*>(caller);
  if (address >= &__executable_start && address < &etext) own_allocations.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace
}  // namespace quicksilver

void* operator new(size_t bytes) {
  quicksilver::Note(bytes, __builtin_return_address(0));
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  quicksilver::Note(bytes, __builtin_return_address(0));
  const size_t unit = static_cast<size_t>(alignment);
  if (void* memory = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
