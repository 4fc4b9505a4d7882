#include "worker/service/memory_plan.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/engine/history_slots.h"

namespace quicksilver {
namespace {

// Of a GPU, besides what grows with the step: the driver's context and modules, the stacks of its threads (about
// 0.75 GiB for the merge of candidates), matrix product workspaces, logits and partial attention results, recorded
// programs, and what NCCL takes.
constexpr int64_t kCudaFixedBytes = int64_t{3} << 30;

std::string Gibibytes(int64_t bytes) { return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30)); }

}  // namespace

MemoryPlan PlanMemory(const ModelSpec& spec, const Shard& shard, const Precision& precision, const Machine& machine,
                      double fraction, int32_t step_rows_max, int32_t page_size, int64_t pages) {
  const RankBudget budget = BudgetOf(spec, shard, precision.activations);
  const int64_t width = static_cast<int64_t>(ElementBytes(precision.activations));
  MemoryPlan plan;
  // A GPU multiplies experts in the activation type.
  plan.weights = DeviceWeightBytes(spec, shard, precision.activations,
                                   precision.int8_layers  ? NarrowWeights::kLayersAndExperts
                                   : precision.fp8_layers ? NarrowWeights::kDenseLayers
                                                          : NarrowWeights::kNone);
  // Hidden states, q/k/v, gate and up, normed and partial copies, and what a row's experts see and answer: an upper
  // bound of what a step touches at once.
  const int64_t row_elements = 5 * spec.hidden + (2 * shard.heads + 2 * shard.kv_heads) * spec.head_size +
                               3 * std::max(shard.mlp, shard.shared_mlp) +
                               spec.moe.routing.chosen * (2 * spec.hidden + 3 * shard.expert_mlp);
  const int64_t routing_bytes = spec.moe.experts * static_cast<int64_t>(sizeof(float)) +
                                spec.moe.routing.chosen * static_cast<int64_t>(sizeof(int32_t) + sizeof(float));
  // The answers of the LM head: top lists and candidates of this rank and, gathered, of all.
  const int64_t answer_bytes =
      int64_t{kTopLogitsMax} * static_cast<int64_t>(sizeof(TopLogit)) + 2 * static_cast<int64_t>(sizeof(Candidate));
  const int64_t answers = answer_bytes * (shard.ranks == 1 ? 1 : 1 + shard.ranks);
  plan.workspace =
      step_rows_max * (row_elements * width + routing_bytes + answers) + (machine.cuda ? kCudaFixedBytes : 0);
  plan.workspace += HistoryRows(spec, step_rows_max) * shard.vocabulary_rows * static_cast<int64_t>(sizeof(float));
  plan.kv_page = page_size * budget.kv_position_bytes;
  plan.budget = static_cast<int64_t>(static_cast<double>(machine.device_bytes) * fraction);
  plan.pages = pages;
  if (pages == 0) plan.pages = std::max<int64_t>(1, (plan.budget - plan.weights - plan.workspace) / plan.kv_page);
  return plan;
}

absl::Status CheckMemory(const MemoryPlan& plan, const Machine& machine, double fraction) {
  if (plan.budget == 0 || plan.total() <= plan.budget) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the model does not fit ", machine.device_name, ": weights ", Gibibytes(plan.weights), ", workspaces ",
      Gibibytes(plan.workspace), " and ", plan.pages, " KV pages ", Gibibytes(plan.kv()), " need ",
      Gibibytes(plan.total()), ", a rank has ", Gibibytes(plan.budget), " (", absl::StrFormat("%g", fraction), " of ",
      Gibibytes(machine.device_bytes),
      "); raise --tensor-parallel-size or --device-memory-fraction, lower --kv-pages or --step-rows-max, or take "
      "--quantization=fp8"));
}

}  // namespace quicksilver
