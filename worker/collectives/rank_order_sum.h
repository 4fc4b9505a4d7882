#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace quicksilver {

/// out[i] = parts[0][i] + parts[1][i] + … + parts[parts_count - 1][i], added in that order in float; bf16 is rounded
/// once, to nearest even, at the end. `out` may be one of `parts`. parts_count >= 1. Pure.
void SumInRankOrder(const void* const* parts, int parts_count, int64_t elements, DType dtype, void* out);

}  // namespace quicksilver
