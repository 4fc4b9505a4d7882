#include "tools/gpu/experts_bench.h"

#include <memory>
#include <set>
#include <vector>

#include "common/status_macros.h"
#include "tools/gpu/bench_model.h"
#include "tools/gpu/device_timer.h"

namespace quicksilver {
namespace {

/// All experts are alike: what is read does not depend on the numbers.
absl::StatusOr<std::unique_ptr<ExpertWeights>> MakeExperts(Ops& ops, const ExpertsCase& of) {
  ASSIGN_OR_RETURN(const std::vector<uint16_t> gate_up, RandomNumbers(2 * of.mlp, of.hidden));
  ASSIGN_OR_RETURN(const std::vector<uint16_t> down, RandomNumbers(of.hidden, of.mlp));
  ASSIGN_OR_RETURN(std::unique_ptr<ExpertWeights> weights,
                   ops.PrepareExperts({.first = 0, .count = of.routing.experts, .hidden = of.hidden, .mlp = of.mlp}));
  for (int32_t e = 0; e < of.routing.experts; ++e) {
    RETURN_IF_ERROR(
        weights->Load(e, ExpertMatrix::kGateUp, {gate_up.data(), 2 * of.mlp, of.hidden, of.hidden, DType::kBf16}));
    RETURN_IF_ERROR(weights->Load(e, ExpertMatrix::kDown, {down.data(), of.hidden, of.mlp, of.mlp, DType::kBf16}));
  }
  return weights;
}

/// Device memory with `content`.
template <typename T>
absl::StatusOr<DeviceBuffer> Put(Ops& ops, const std::vector<T>& content) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer, ops.Allocate(content.size() * sizeof(T)));
  ops.Upload(content.data(), buffer.data(), buffer.bytes());
  return buffer;
}

}  // namespace

absl::StatusOr<ExpertsTimes> TimeExperts(TimedOps& ops, const ExpertsCase& of, int rounds) {
  const int64_t experts_count = of.routing.experts, choices = of.rows * of.routing.chosen;
  ASSIGN_OR_RETURN(const std::unique_ptr<ExpertWeights> weights, MakeExperts(ops, of));
  ASSIGN_OR_RETURN(const std::vector<uint16_t> numbers, RandomNumbers(of.rows, of.hidden));
  ASSIGN_OR_RETURN(const std::vector<uint16_t> scores, RandomNumbers(of.rows, experts_count));
  ASSIGN_OR_RETURN(const DeviceBuffer rows, Put(ops, numbers));
  ASSIGN_OR_RETURN(const DeviceBuffer logits, Put(ops, scores));
  const int32_t rows_count = static_cast<int32_t>(of.rows);
  ASSIGN_OR_RETURN(const DeviceBuffer segments,
                   Put(ops, std::vector<AttentionSegment>{{.rows = rows_count, .keys = rows_count}}));
  ASSIGN_OR_RETURN(const DeviceBuffer out, ops.Allocate(numbers.size() * sizeof(uint16_t)));
  ASSIGN_OR_RETURN(const DeviceBuffer experts, ops.Allocate(static_cast<size_t>(choices) * sizeof(int32_t)));
  ASSIGN_OR_RETURN(const DeviceBuffer shares, ops.Allocate(static_cast<size_t>(choices) * sizeof(float)));

  const StepLayout layout = {
      .rows = rows_count, .segments = static_cast<const AttentionSegment*>(segments.data()), .segments_count = 1};
  const ConstMatrix x(rows.data(), of.rows, of.hidden, of.hidden, DType::kBf16);
  const Matrix sums = {out.data(), of.rows, of.hidden, of.hidden, DType::kBf16};
  const auto run = [&] {
    auto* const chosen = static_cast<int32_t*>(experts.data());
    ops.Route(layout, {logits.data(), of.rows, experts_count, experts_count, DType::kBf16}, of.routing, chosen,
              static_cast<float*>(shares.data()));
    ops.ExpertMlp(x, *weights, Activation::kSilu, chosen, static_cast<const float*>(shares.data()), of.routing.chosen,
                  /*add=*/false, sums);
  };
  run();  // Makes workspaces, which a recording must not.
  std::vector<int32_t> chosen(static_cast<size_t>(choices));
  ops.Download(experts.data(), chosen.data(), experts.bytes());
  RETURN_IF_ERROR(ops.Synchronize());
  ASSIGN_OR_RETURN(const std::unique_ptr<Program> program, ops.Record(run, nullptr));
  ASSIGN_OR_RETURN(const std::vector<double> seconds, TimeOnDevice(ops.stream(), /*warm_up=*/1, rounds, [&] {
                     program->Launch();
                     return ops.status();
                   }));
  RETURN_IF_ERROR(ops.Synchronize());
  return ExpertsTimes{Median(seconds), static_cast<int64_t>(std::set<int32_t>(chosen.begin(), chosen.end()).size())};
}

}  // namespace quicksilver
