#pragma once

#include <atomic>
#include <cstddef>

namespace quicksilver {

// What `new` is asked for, by all threads. Only in a binary with allocations.cc, which replaces operator new.

/// The largest single allocation since it was last set to 0.
extern std::atomic<size_t> largest_allocation;

/// Allocations since it was last set to 0 that this program's own code asked for: those inside of shared libraries do
/// not count.
extern std::atomic<size_t> own_allocations;

}  // namespace quicksilver
