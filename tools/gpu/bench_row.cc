#include "tools/gpu/bench_row.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"

namespace quicksilver {
namespace {

using nlohmann::ordered_json;

constexpr double kMicro = 1e6;

/// What is asked of a row, and whether all of it was reached.
class Judgement {
 public:
  void AtMost(const char* what, double found, double most) { Judge(what, "<=", most, found <= most); }
  void AtLeast(const char* what, double found, double least) { Judge(what, ">=", least, found >= least); }
  void WriteTo(ordered_json& row) const {
    row["aim"] = text_;
    if (!text_.empty()) row["met"] = met_;
  }

 private:
  void Judge(const char* what, const char* sign, double bound, bool met) {
    if (bound == 0.0) return;
    if (!text_.empty()) text_ += ", ";
    text_ += absl::StrFormat("%s %s %.2f", what, sign, bound);
    met_ = met_ && met;
  }

  std::string text_;
  bool met_ = true;
};

ordered_json Begin(const char* kind, const BenchCase& of) {
  return {{"kind", kind}, {"case", of.name}, {"what", of.what}};
}

}  // namespace

ordered_json StepRow(const BenchCase& of, const StepTimes& times, const StepCost& cost, const Ceilings& ceilings) {
  const StepFloor floor = FloorOf(cost, ceilings, of.fp8_layers);
  const double ratio = times.step / floor.seconds;
  const double peak = of.fp8_layers ? ceilings.fp8_flops_per_second : ceilings.bf16_flops_per_second;
  const double gemm_share = cost.flops() / times.step / peak;
  const double gap_share = times.host_gap / times.step;
  ordered_json row = Begin("step", of);
  row["model"] = of.model;
  row["layers"] = of.fp8_layers ? "fp8" : "bf16";
  row["deterministic"] = of.deterministic;
  row["ranks"] = of.ranks;
  row["sequences"] = of.step.sequences;
  row["block"] = of.step.block_length;
  row["context"] = of.step.context;
  row["whole_canvas"] = of.step.whole_canvas;
  row["measured_us"] = times.step * kMicro;
  row["measured_p10_us"] = times.step_p10 * kMicro;
  row["measured_p90_us"] = times.step_p90 * kMicro;
  row["floor_us"] = floor.seconds * kMicro;
  row["floor_of"] = floor.bound == FloorBound::kBytes ? "bytes" : "flops";
  row["bytes"] = cost.bytes();
  row["flops"] = cost.flops();
  row["ratio"] = ratio;
  row["gemm_share"] = gemm_share;
  row["device_us"] = times.device * kMicro;
  row["host_gap_us"] = times.host_gap * kMicro;
  row["host_gap_share"] = gap_share;
  row["launches"] = times.launches;
  row["steps_per_launch"] = times.steps_per_launch;
  row["steps_per_second"] = 1.0 / times.step;
  for (const TokensPerForward& factor : of.tokens_per_forward) {
    row["tokens"].push_back({{"per_second", factor.tokens * of.step.sequences / times.step},
                             {"per_forward", factor.tokens},
                             {"source", factor.source}});
  }
  Judgement judgement;
  judgement.AtMost("measured / floor", ratio, of.aim.floor_ratio_max);
  judgement.AtLeast("share of the GEMM ceiling", gemm_share, of.aim.gemm_share_min);
  judgement.AtMost("host gap / step", gap_share, of.aim.host_gap_share_max);
  judgement.WriteTo(row);
  return row;
}

ordered_json CandidatesRow(const BenchCase& of, const CandidatesTimes& times, const Ceilings& ceilings) {
  const CandidatesCase& sizes = of.candidates;
  const double elements = static_cast<double>(sizes.vocabulary) * static_cast<double>(sizes.hidden);
  StepCost cost;
  cost.weight_bytes = 2.0 * elements;
  cost.row_bytes = 2.0 * static_cast<double>(sizes.rows * sizes.hidden);
  cost.head_flops = 2.0 * elements * static_cast<double>(sizes.rows);
  const StepFloor floor = FloorOf(cost, ceilings, /*fp8_layers=*/false);
  ordered_json row = Begin("candidates", of);
  row["rows"] = sizes.rows;
  row["measured_us"] = times.candidates * kMicro;
  row["floor_us"] = floor.seconds * kMicro;
  row["floor_of"] = floor.bound == FloorBound::kBytes ? "bytes" : "flops";
  row["ratio"] = times.candidates / floor.seconds;
  row["product_us"] = times.product * kMicro;
  row["product_ratio"] = times.candidates / times.product;
  Judgement judgement;
  judgement.AtMost("candidates / product", times.candidates / times.product, of.aim.product_ratio_max);
  judgement.WriteTo(row);
  return row;
}

ordered_json ExpertsRow(const BenchCase& of, const ExpertsTimes& times, const Ceilings& ceilings) {
  const ExpertsCase& sizes = of.experts;
  const double elements = 3.0 * static_cast<double>(sizes.hidden) * static_cast<double>(sizes.mlp);  // Of an expert.
  StepCost cost;
  cost.weight_bytes = 2.0 * elements * static_cast<double>(times.touched);
  cost.layer_flops = 2.0 * elements * static_cast<double>(sizes.rows * sizes.routing.chosen);
  const StepFloor floor = FloorOf(cost, ceilings, /*fp8_layers=*/false);
  const double ratio = times.seconds / floor.seconds;
  ordered_json row = Begin("experts", of);
  row["rows"] = sizes.rows;
  row["experts"] = sizes.routing.experts;
  row["touched"] = times.touched;
  row["measured_us"] = times.seconds * kMicro;
  row["floor_us"] = floor.seconds * kMicro;
  row["floor_of"] = floor.bound == FloorBound::kBytes ? "bytes" : "flops";
  row["bytes"] = cost.bytes();
  row["ratio"] = ratio;
  Judgement judgement;
  judgement.AtMost("measured / floor", ratio, of.aim.floor_ratio_max);
  judgement.WriteTo(row);
  return row;
}

ordered_json CeilingsObject(const Ceilings& ceilings) {
  return {{"copy_gb_per_s", ceilings.copy_bytes_per_second * 1e-9},
          {"bf16_tflops", ceilings.bf16_flops_per_second * 1e-12},
          {"fp8_tflops", ceilings.fp8_flops_per_second * 1e-12}};
}

}  // namespace quicksilver
