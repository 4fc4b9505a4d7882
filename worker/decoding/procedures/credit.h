#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// dInfer's credit decoder (decoding.md §8.3): tokens that stay the best of a masked row collect credit C, which decays
/// by `beta` a forward and gets p^gamma at the row's arg-max, p being its probability without credit. Rows then commit
/// by threshold from z + alpha ln(1 + C).
///
/// The credit of earlier steps is in the logits of the step (AppendBiases), and what the step itself adds to one id a
/// row is worked out from that row's best tokens. That is exact, except that ids with credit which have fallen out of a
/// row's kTopReportedMax best count with their credit in p, and that a row keeps credit for kIdsMax ids.
class Credit final : public Procedure {
 public:
  struct Settings {
    float threshold = 0.9f;  ///< [0, 1]
    float alpha = 0.7f;      ///< [0, 10]
    float gamma = 0.2f;      ///< [0, 10]
    float beta = 0.8f;       ///< [0, 1]
    SamplingRule sampling;   ///< The request's.
  };
  /// So that one of the best tokens of a row always is without credit.
  static constexpr size_t kIdsMax = kTopReportedMax - 1;

  explicit Credit(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<Credit>(*this); }
  void OpenBlock(const CanvasView& view) override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  bool writes_always() const override { return true; }
  bool stateful() const override { return true; }
  bool wants_tops() const override { return true; }
  void AppendBiases(int32_t position, std::vector<TokenBias>& biases) const override;

 private:
  using Row = std::map<TokenId, double>;  // C, decayed for the next step.

  RowChoice Credited(Row& row, const RowChoice& choice, absl::Span<const TopLogit> tops, const DrawPlace& place) const;
  double BonusOf(const Row& row, TokenId id) const;

  Settings settings_;
  std::map<int32_t, Row> credit_;  // By position.
};

}  // namespace quicksilver
