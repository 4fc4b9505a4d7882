#include "tests/support/largest_allocation.h"

#include <cstdlib>
#include <new>

namespace quicksilver {
size_t largest_allocation = 0;
}  // namespace quicksilver

void* operator new(size_t bytes) {
  if (bytes > quicksilver::largest_allocation) quicksilver::largest_allocation = bytes;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
