#pragma once

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "tests/support/golden.h"

namespace quicksilver {

/// An implementation of Ops that the golden suites hold to the recorded numbers.
struct GoldenOps {
  const char* name;
  std::unique_ptr<Ops> (*make)(DType activation);
  int ranks_max = 4;    ///< Ranks that the suites' communicators between threads can serve.
  std::string missing;  ///< Why it cannot run here; empty when it can.
};

/// Those of this test program: processors in one, a CUDA device (or its twin) in another.
std::vector<GoldenOps> AllGoldenOps();

/// Family, dtype of the checkpoint, tensor-parallel size, implementation.
using GoldenCase = std::tuple<std::string, std::string, int, GoldenOps>;

/// Every recorded checkpoint with each of `kinds`. Without recordings there is one case, which fails and says so.
inline std::vector<GoldenCase> GoldenCases(const std::vector<GoldenOps>& kinds) {
  std::vector<std::pair<std::string, std::string>> checkpoints = {{"none", "f32"}};
  if (const absl::StatusOr<Golden> golden = Golden::Open(); golden.ok()) checkpoints = golden->Checkpoints();
  std::vector<GoldenCase> cases;
  for (const auto& [family, dtype] : checkpoints) {
    for (const int ranks : {1, 2, 4}) {
      for (const GoldenOps& kind : kinds) {
        if (ranks <= kind.ranks_max) cases.emplace_back(family, dtype, ranks, kind);
      }
    }
  }
  return cases;
}

}  // namespace quicksilver
