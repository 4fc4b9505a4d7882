#include "worker/model/routed_experts.h"

#include "common/status_macros.h"

namespace quicksilver {

absl::Status RoutedExperts::Prepare(const ModelSpec& spec, Ops& ops, int32_t rows_max) {
  if (spec.moe.experts == 0) return absl::OkStatus();
  ops_ = &ops;
  rule_ = spec.moe.routing;
  const DType dtype = spec.moe.float_router ? DType::kF32 : ops.activation_dtype();
  const size_t choices = static_cast<size_t>(rows_max) * static_cast<size_t>(rule_.chosen);
  const size_t logits = static_cast<size_t>(rows_max) * static_cast<size_t>(spec.moe.experts);
  ASSIGN_OR_RETURN(logits_memory_, ops.Allocate(logits * ElementBytes(dtype)));
  ASSIGN_OR_RETURN(chosen_memory_, ops.Allocate(choices * sizeof(int32_t)));
  ASSIGN_OR_RETURN(weights_memory_, ops.Allocate(choices * sizeof(float)));
  logits_ = {logits_memory_.data(), rows_max, spec.moe.experts, spec.moe.experts, dtype};
  chosen_ = static_cast<int32_t*>(chosen_memory_.data());
  weights_ = static_cast<float*>(weights_memory_.data());
  return absl::OkStatus();
}

// Every rank computes the same logits from the same rows, so all of them choose the same experts.
void RoutedExperts::Run(const MoeWeights& weights, const StepLayout& layout, ConstMatrix x, bool add, Matrix out) {
  const Matrix logits = TopRows(logits_, x.rows);
  RoutingRule rule = rule_;
  rule.bias = static_cast<const float*>(weights.expert_bias.data());
  ops_->Gemm(x, *weights.router, logits);  // [N, H] -> [N, E]
  ops_->Route(layout, logits, rule, chosen_, weights_);
  ops_->ExpertMlp(x, *weights.experts, Activation::kSilu, chosen_, weights_, rule.chosen, add, out);
}

}  // namespace quicksilver
