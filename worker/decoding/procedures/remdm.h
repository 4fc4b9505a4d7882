#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"
#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

/// ReMDM's sampler (decoding.md §12): the time of a block runs from 1 to 0 in equal steps, a(t) being the probability
/// that a row is clean. In the step from t to s a clean row is masked with probability sigma, and a masked one is
/// written with (a(s) - (1 - sigma) a(t)) / (1 - a(t)); the last step writes all. A clean block stays open until then.
class Remdm final : public Procedure {
 public:
  enum class Schedule {
    kCap,         ///< sigma = min(eta, sigma_max), sigma_max = min(1, (1 - a(s)) / a(t)); a(t) = 1 - t.
    kRescale,     ///< sigma = eta sigma_max
    kConfidence,  ///< sigma = sigma_max softmax(-p) over the clean rows, p: their probability when they were written.
    kLoop,        ///< sigma = min(eta, sigma_max) while off < t <= on, where a is held at `alpha`; else 0.
  };
  struct Settings {
    Schedule schedule = Schedule::kCap;
    float eta = 0.008f;     ///< [0, 1]. Not of kConfidence.
    float on = 0.55f;       ///< [0, 1]. kLoop's
    float off = 0.05f;      ///< [0, on]
    float alpha = 0.9f;     ///< [0, 1]
    BlockSchedule steps;    ///< More than a block has positions if need be.
    SamplingRule sampling;  ///< The request's.
  };
  explicit Remdm(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<Remdm>(*this); }
  void OpenBlock(const CanvasView& view) override;
  /// Without a mask all free rows, whose numbers then matter to nobody.
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  int32_t steps_max(int32_t positions) const override;
  bool stateful() const override { return true; }
  bool edits() const override { return true; }

  /// The probability that a row is clean at time t in [0, 1].
  double AlphaAt(double t) const;

 private:
  struct Step {
    bool last = false;
    double write = 1.0;  // The probability that a masked row is written, …
    double sigma = 0.0;  // … and that a clean one is masked; of kConfidence, of all clean ones together.
  };

  double SigmaOf(double t, double sigma_max) const;
  Step StepOf(const CanvasView& view) const;
  std::vector<TokenWrite> Remask(const CanvasView& view, double sigma) const;

  Settings settings_;
  std::map<int32_t, float> confidence_;  // By position, of the written ones.
};

}  // namespace quicksilver
