#include "tools/gpu/step_cost.h"

namespace quicksilver {

StepWork WorkOf(int64_t sequences, int64_t rows, int64_t head_rows, int64_t keys) {
  return {.rows = sequences * rows,
          .head_rows = sequences * head_rows,
          .keys = sequences * keys,
          .pairs = sequences * rows * keys};
}

StepCost CostOf(const ModelSpec& spec, const Shard& shard, const StepWork& work, bool fp8_layers) {
  const RankBudget budget = BudgetOf(spec, shard, DType::kBf16);
  const int64_t table_bytes = budget.weight_bytes - budget.step_weight_bytes;
  const int64_t head_row_flops = 2 * shard.vocabulary_rows * spec.hidden;
  StepCost cost;
  const NarrowWeights narrow = fp8_layers ? NarrowWeights::kDenseLayers : NarrowWeights::kNone;
  cost.weight_bytes = static_cast<double>(DeviceWeightBytes(spec, shard, DType::kBf16, narrow) - table_bytes);
  cost.kv_bytes = static_cast<double>(budget.kv_position_bytes) * static_cast<double>(work.keys + work.rows);
  cost.row_bytes = static_cast<double>(work.rows * spec.hidden) * static_cast<double>(ElementBytes(DType::kBf16));
  cost.layer_flops = static_cast<double>(budget.row_flops - head_row_flops) * static_cast<double>(work.rows);
  cost.head_flops = static_cast<double>(head_row_flops) * static_cast<double>(work.head_rows);
  cost.attention_flops = static_cast<double>(budget.attention_flops) * static_cast<double>(work.pairs);
  return cost;
}

StepFloor FloorOf(const StepCost& cost, const Ceilings& ceilings, bool fp8_layers) {
  const double layer_peak = fp8_layers ? ceilings.fp8_flops_per_second : ceilings.bf16_flops_per_second;
  const double memory = cost.bytes() / ceilings.copy_bytes_per_second;
  const double arithmetic =
      cost.layer_flops / layer_peak + (cost.head_flops + cost.attention_flops) / ceilings.bf16_flops_per_second;
  if (memory >= arithmetic) return {memory, FloorBound::kBytes};
  return {arithmetic, FloorBound::kFlops};
}

}  // namespace quicksilver
