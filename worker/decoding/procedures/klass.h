#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"
#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

/// KLASS (decoding.md §9): rows whose confidence is above `threshold` and whose distribution has settled commit, all of
/// them; else the best by confidence, as many as the schedule says. Settled: the KL divergence from the step before was
/// below `kl_threshold` in this step and in the one before.
///
/// Every block begins without a history, as the first one does in the reference, so that nothing is settled before its
/// third forward. The rule's confidence is raw: noise would never settle.
class Klass final : public Procedure {
 public:
  struct Settings {
    float threshold = 0.9f;      ///< [0, 1]
    float kl_threshold = 0.01f;  ///< Nats. [0, 100]
    BlockSchedule schedule;
  };
  explicit Klass(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<Klass>(*this); }
  void OpenBlock(const CanvasView& view) override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  bool writes_always() const override { return true; }
  bool stateful() const override { return true; }
  bool wants_history() const override { return true; }

 private:
  struct Row {
    double log_sum_exp = 0.0;  // Of the step before.
    int32_t settled = 0;       // Steps on end with a small KL.
  };

  Settings settings_;
  std::map<int32_t, Row> rows_;  // By position: those that the step before asked for.
  int32_t masks_ = 0;            // Of the block at its beginning.
};

}  // namespace quicksilver
