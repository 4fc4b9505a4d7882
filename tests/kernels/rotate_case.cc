#include "tests/kernels/rotate_case.h"

namespace quicksilver {

Rotated RunRotate(OpsTestBase& test, const RotateCase& rotate, const HostMatrix& qkv,
                  const std::vector<int32_t>& positions, const std::vector<int32_t>& slots) {
  const int64_t kv_cols = int64_t{rotate.kv_heads} * rotate.head_size;
  const DeviceMatrix device = test.Put(qkv);
  const DeviceMatrix keys = test.Space(qkv.rows + 1, kv_cols), values = test.Space(qkv.rows + 1, kv_cols);
  const DeviceArray<int32_t> device_positions = test.PutArray(positions), device_slots = test.PutArray(slots);
  const DeviceArray<float> q_gain = test.PutArray(rotate.q_gain), k_gain = test.PutArray(rotate.k_gain);
  const StepLayout layout = {.rows = static_cast<int32_t>(qkv.rows),
                             .positions = device_positions.data(),
                             .slots = device_slots.data(),
                             .page_size = 1};
  const HeadTransform transform = {.q_gain = rotate.q_gain.empty() ? nullptr : q_gain.data(),
                                   .k_gain = rotate.k_gain.empty() ? nullptr : k_gain.data(),
                                   .epsilon = rotate.epsilon,
                                   .rope = rotate.rope};
  test.ops().BeginStep(layout);
  test.ops().RotateAndCache(layout, transform, rotate.heads, rotate.kv_heads, {keys, values}, device);
  return {test.Get(device), test.Get(keys), test.Get(values)};
}

}  // namespace quicksilver
