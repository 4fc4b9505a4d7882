#pragma once

#include <cstdint>

#include "worker/model/model_spec.h"
#include "worker/model/sharding.h"

namespace quicksilver {

/// What one step computes, all sequences together.
struct StepWork {
  int64_t rows = 0;       ///< N, without padding.
  int64_t head_rows = 0;  ///< Rows that need logits.
  int64_t keys = 0;       ///< Sum of the keys of all sequences: each is read once.
  int64_t pairs = 0;      ///< Sum of rows x keys over the sequences.
};

/// The work of `sequences` equal sequences with `rows` rows each, of which `head_rows` need logits, that see `keys`
/// keys.
StepWork WorkOf(int64_t sequences, int64_t rows, int64_t head_rows, int64_t keys);

/// What no implementation of a step can avoid: bytes between the device's memory and its processors, and arithmetic.
/// Activations may stay on the chip and count as nothing, but for the embedding's rows.
struct StepCost {
  double weight_bytes = 0.0;  ///< Every weight but the embedding's table, once.
  double kv_bytes = 0.0;      ///< Keys and values read, and those of the step's own rows written.
  double row_bytes = 0.0;     ///< Rows of the embedding.
  double layer_flops = 0.0;   ///< Matrix products of the layers.
  double head_flops = 0.0;    ///< The LM head's.
  double attention_flops = 0.0;

  double bytes() const { return weight_bytes + kv_bytes + row_bytes; }
  double flops() const { return layer_flops + head_flops + attention_flops; }
};

/// `fp8_layers`: the layers' matrices take a byte an element and a float a channel; head, cache and activations stay
/// bf16.
StepCost CostOf(const ModelSpec& spec, const Shard& shard, const StepWork& work, bool fp8_layers);

/// What a device has been seen to do.
struct Ceilings {
  double copy_bytes_per_second = 0.0;  ///< Read plus written.
  double bf16_flops_per_second = 0.0;
  double fp8_flops_per_second = 0.0;
};

enum class FloorBound { kBytes, kFlops };

struct StepFloor {
  double seconds = 0.0;
  FloorBound bound = FloorBound::kBytes;
};

/// max(bytes / bandwidth, layer flops / peak of their type + other flops / bf16 peak).
StepFloor FloorOf(const StepCost& cost, const Ceilings& ceilings, bool fp8_layers);

}  // namespace quicksilver
