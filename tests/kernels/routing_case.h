#pragma once

#include <vector>

#include "tests/kernels/ops_fixture.h"

namespace quicksilver {

struct Routed {
  std::vector<int32_t> experts;  ///< [N, k]
  std::vector<float> weights;    ///< [N, k]
};

/// A segment of `rows` rows at positions from `first_position` on, right behind the rows of those before it.
inline void AppendSegment(std::vector<AttentionSegment>& segments, int32_t rows, int32_t first_position) {
  const int32_t first_row = segments.empty() ? 0 : segments.back().first_row + segments.back().rows;
  segments.push_back(
      {.first_row = first_row, .rows = rows, .first_position = first_position, .keys = first_position + rows});
}

/// Routes the rows of `logits` (f32, or the activation type), one segment from position 0 unless others are given.
/// rule.bias and rule.expert_scale are host memory here.
inline Routed RunRoute(OpsTestBase& test, const HostMatrix& logits, RoutingRule rule,
                       std::vector<AttentionSegment> segments = {}, DType dtype = DType::kF32) {
  if (segments.empty()) AppendSegment(segments, static_cast<int32_t>(logits.rows), 0);
  const DeviceArray<AttentionSegment> device_segments = test.PutArray(segments);
  std::vector<int32_t> positions(static_cast<size_t>(logits.rows));
  for (const AttentionSegment& segment : segments) {
    for (int32_t i = 0; i < segment.rows; ++i) positions[segment.first_row + i] = segment.first_position + i;
  }
  const DeviceArray<int32_t> device_positions = test.PutArray(positions);
  const auto put = [&](const float* values) {
    return test.PutArray(values == nullptr ? std::vector<float>() : std::vector<float>(values, values + rule.experts));
  };
  const DeviceArray<float> bias = put(rule.bias), scale = put(rule.expert_scale);
  if (rule.bias != nullptr) rule.bias = bias.data();
  if (rule.expert_scale != nullptr) rule.expert_scale = scale.data();
  const DeviceMatrix device_logits = test.Put(logits, dtype);
  const size_t choices = static_cast<size_t>(logits.rows * rule.chosen);
  const DeviceArray<int32_t> experts = test.PutArray(std::vector<int32_t>(choices, 99));
  const DeviceArray<float> weights = test.PutArray(std::vector<float>(choices, 99.0f));
  const StepLayout layout = {.rows = static_cast<int32_t>(logits.rows),
                             .positions = device_positions.data(),
                             .segments = device_segments.data(),
                             .segments_count = static_cast<int32_t>(segments.size())};
  test.ops().Route(layout, device_logits, rule, experts.data(), weights.data());
  return {test.GetArray(experts), test.GetArray(weights)};
}

}  // namespace quicksilver
