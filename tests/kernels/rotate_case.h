#pragma once

#include <cstdint>
#include <vector>

#include "tests/kernels/ops_fixture.h"

namespace quicksilver {

/// A RotateAndCache test: rows of heads queries, kv_heads keys and kv_heads values of `head_size` each.
struct RotateCase {
  int32_t heads = 1;
  int32_t kv_heads = 1;
  int32_t head_size = 2;
  RopeParameters rope;
  std::vector<float> q_gain;  ///< Empty: no norm.
  std::vector<float> k_gain;
  float epsilon = 1e-6f;
  bool norm_values = false;
  bool float_gain = false;

  int64_t cols() const { return int64_t{heads + 2 * kv_heads} * head_size; }
};

struct Rotated {
  HostMatrix qkv;
  HostMatrix keys;    ///< The cache, one slot more than there are rows.
  HostMatrix values;  ///< The same.
};

/// Runs it on `qkv`, row n at positions[n], its key and value going to slots[n] of a cache of zeros.
Rotated RunRotate(OpsTestBase& test, const RotateCase& rotate, const HostMatrix& qkv,
                  const std::vector<int32_t>& positions, const std::vector<int32_t>& slots);

}  // namespace quicksilver
