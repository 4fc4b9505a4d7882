#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// A rule that looks at nothing but the ranks of the open block's masked rows (kernels/policy/selection.h), which a
/// device may run on its own.
class RankPolicy final : public Procedure {
 public:
  struct Settings {
    BlockRule rule;      ///< Of a block: `masks` and `steps` where all blocks have the same, see below.
    int32_t blocks = 0;  ///< 0: all blocks have the same. Else rule.steps is of so many blocks together, and a block's
                         ///< masks are the positions that nobody fixed.
    std::vector<TokenId> distrusted;  ///< Ascending; rank last.
  };
  explicit RankPolicy(Settings settings) : settings_(std::move(settings)) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<RankPolicy>(*this); }
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  bool writes_always() const override { return true; }
  std::optional<BlockRule> DeviceRule(const CanvasView& view) const override;

 private:
  BlockRule RuleOf(const CanvasView& view) const;

  Settings settings_;
};

}  // namespace quicksilver
