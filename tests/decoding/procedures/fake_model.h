#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/candidate.h"
#include "kernels/policy/merge_candidates.h"

namespace quicksilver {

/// A made-up network over a small vocabulary: the logits of a row are numbers from a seed, its position and what it
/// sees. Its last ids are special.
struct FakeModel {
  static constexpr int32_t kVocabulary = 24;
  static constexpr TokenId kMask = 23;
  static constexpr TokenId kEos = 22;
  static constexpr TokenId kDelete = 21;
  static constexpr TokenId kInsert = 20;

  uint64_t seed = 1;
  float scale = 2.0f;     ///< Of what depends on the position alone, …
  float coupling = 2.0f;  ///< … and of what depends on all tokens that a row sees.
  float mask_bias = 0.0f, eos_bias = 0.0f, control_bias = 0.0f;  ///< Added to these logits.

  /// A shadow row sees a mask at its own position.
  std::vector<float> Logits(absl::Span<const TokenId> tokens, int32_t position, bool shadow = false) const;
};

/// In double, over all ids: what the references of these tests are made from.
std::vector<double> Softmax(absl::Span<const float> logits);
/// The best id that is not the mask; ties: the smallest.
TokenId BestId(absl::Span<const float> logits);

/// What the step would say of a row, worked out plainly. `previous`: the logits of the step before, or empty.
RowChoice ChoiceOf(absl::Span<const float> logits, TokenId asked_id, absl::Span<const float> previous,
                   const SamplingRule& sampling, const DrawPlace& place);
/// The kTopReportedMax best, the mask left out.
std::vector<TopLogit> TopsOf(absl::Span<const float> logits);

}  // namespace quicksilver
