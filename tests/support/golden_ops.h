#pragma once

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/ops.h"

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
using GoldenCase = std::tuple<const char*, const char*, int, GoldenOps>;

/// Every case that `kinds` can serve.
inline std::vector<GoldenCase> GoldenCases(const std::vector<GoldenOps>& kinds) {
  std::vector<GoldenCase> cases;
  for (const char* family : {"sdar", "llada", "dream", "llada2", "lladamoe"}) {
    for (const char* dtype : {"f32", "bf16"}) {
      if (family == std::string("lladamoe") && dtype == std::string("f32")) continue;  // Not recorded.
      for (const int ranks : {1, 2, 4}) {
        for (const GoldenOps& kind : kinds) {
          if (ranks <= kind.ranks_max) cases.emplace_back(family, dtype, ranks, kind);
        }
      }
    }
  }
  return cases;
}

}  // namespace quicksilver
