#include "tests/kernels/rotate_case.h"

#include <numeric>

namespace quicksilver {
namespace {

Matrix WithoutFirstRow(const Matrix& m) {
  return {static_cast<char*>(m.data) + static_cast<size_t>(m.stride) * ElementBytes(m.dtype), m.rows - 1, m.cols,
          m.stride, m.dtype};
}

HostMatrix Slots(const HostMatrix& cache) {
  ExpectSameBits(SelectRows(cache, {0}), HostMatrix(1, cache.cols));
  std::vector<int32_t> slots(static_cast<size_t>(cache.rows - 1));
  std::iota(slots.begin(), slots.end(), 1);
  return SelectRows(cache, slots);
}

}  // namespace

Rotated RunRotate(OpsTestBase& test, const RotateCase& rotate, const HostMatrix& qkv,
                  const std::vector<int32_t>& positions, const std::vector<int32_t>& slots) {
  const int64_t kv_cols = int64_t{rotate.kv_heads} * rotate.head_size;
  const DeviceMatrix device = test.Put(qkv);
  // A row before the first slot shows who stores at slot -1.
  const DeviceMatrix keys = test.Space(qkv.rows + 2, kv_cols), values = test.Space(qkv.rows + 2, kv_cols);
  const DeviceArray<int32_t> device_positions = test.PutArray(positions), device_slots = test.PutArray(slots);
  const DeviceArray<float> q_gain = test.PutArray(rotate.q_gain), k_gain = test.PutArray(rotate.k_gain);
  const StepLayout layout = {.rows = static_cast<int32_t>(qkv.rows),
                             .positions = device_positions.data(),
                             .slots = device_slots.data(),
                             .page_size = 1};
  const HeadTransform transform = {.q_gain = rotate.q_gain.empty() ? nullptr : q_gain.data(),
                                   .k_gain = rotate.k_gain.empty() ? nullptr : k_gain.data(),
                                   .epsilon = rotate.epsilon,
                                   .norm_values = rotate.norm_values,
                                   .float_gain = rotate.float_gain,
                                   .rope = rotate.rope};
  test.ops().BeginStep(layout);
  test.ops().RotateAndCache(layout, transform, rotate.heads, rotate.kv_heads,
                            {WithoutFirstRow(keys), WithoutFirstRow(values)}, device);
  return {test.Get(device), Slots(test.Get(keys)), Slots(test.Get(values))};
}

}  // namespace quicksilver
