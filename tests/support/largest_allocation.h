#pragma once

#include <cstddef>

namespace quicksilver {

/// The largest single allocation by `new` since it was last set to 0. Only in a binary with largest_allocation.cc,
/// which replaces operator new.
extern size_t largest_allocation;

}  // namespace quicksilver
