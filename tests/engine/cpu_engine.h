#pragma once

#include <string>

#include "common/check.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"
#include "tests/support/golden.h"

namespace quicksilver {

/// A group on the processor. "demo" is the model that the repository ships; the families are the recorded checkpoints.
inline EngineGroup::Options CpuEngineOptions(const std::string& model, int ranks) {
  EngineGroup::Options options;
  if (model == "demo") {
    options.directory = QUICKSILVER_ROOT "/models/demo";
  } else {
    const absl::StatusOr<Golden> golden = Golden::Open();
    CHECK(golden.ok());
    options.directory = *golden->CheckpointDirectory(model, "bf16");
  }
  options.ranks = ranks;
  options.make_ops = [] { return MakeCpuOps(DType::kF32, CpuOpsOptions()); };
  return options;
}

}  // namespace quicksilver
