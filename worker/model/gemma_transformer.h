#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "worker/model/sharding.h"
#include "worker/model/transformer.h"

namespace quicksilver {

/// DiffusionGemma (models.md §8.4). Rows of causal segments are its encoder, those that StepLayout::conditioning names
/// its decoder: the same layers. Arguments as Transformer::Load, which has checked them.
absl::StatusOr<std::unique_ptr<Transformer>> LoadGemmaTransformer(const ModelSpec& spec, const Shard& shard,
                                                                  const Checkpoint& checkpoint, Ops& ops,
                                                                  Communicator& ranks, int32_t rows_max, int32_t pages,
                                                                  int32_t page_size, const LoadProgress& progress);

}  // namespace quicksilver
