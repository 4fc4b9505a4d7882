#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "tools/golden_set.h"

namespace quicksilver {

enum class Verdict { kPass, kFail, kSkipped };

struct CaseResult {
  std::string name;
  std::string checkpoint;  ///< Empty for a case that is skipped before any.
  int ranks = 0;
  Verdict verdict = Verdict::kFail;
  std::string detail;
};

/// The recordings are float32's own noise (6e-5) away from exact numbers; ours add in another order.
inline constexpr double kGoldenErrorMax = 1e-3;

using MakeOps = std::function<std::unique_ptr<Ops>()>;

/// Decodes the recorded prompts of `checkpoint`'s family with the service's own engine, all traces of one block length
/// at the same time, and compares every step: positions, tokens, and confidences to `confidence_error_max`. Computes in
/// the activation type of `make_ops`. Unsupported traces are left out.
std::vector<CaseResult> CheckTraces(const GoldenSet& set, const GoldenCheckpoint& checkpoint, int ranks,
                                    const MakeOps& make_ops, double confidence_error_max = kGoldenErrorMax);

/// Runs the recorded forward passes of `checkpoint`'s family, each alone and then all of one mask in one batch, and
/// compares logits and hidden states to 1e-3.
std::vector<CaseResult> CheckForwards(const std::string& directory, const GoldenCheckpoint& checkpoint, int ranks,
                                      const MakeOps& make_ops);

/// One line for every trace and family of forward passes that cannot be compared.
std::vector<CaseResult> ListSkipped(const GoldenSet& set);

}  // namespace quicksilver
