#pragma once

#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// One token a forward, left to right: the one that the row before the first mask draws. No pace makes it faster.
class Autoregressive final : public Procedure {
 public:
  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<Autoregressive>(*this); }
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  bool writes_always() const override { return true; }
};

}  // namespace quicksilver
