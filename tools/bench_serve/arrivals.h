#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quicksilver {

/// When each of `count` requests is sent, in seconds from the start, ascending. The gaps are gamma distributed with
/// shape `burstiness` and mean 1 / `rate`: 1 is a Poisson process, below it requests come in bursts, above it they come
/// more evenly. An infinite rate sends all of them at 0. Requires: rate > 0, burstiness > 0. Pure.
std::vector<double> ArrivalSeconds(size_t count, double rate, double burstiness, uint64_t seed);

}  // namespace quicksilver
