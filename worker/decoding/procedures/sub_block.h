#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// Fast-dLLM v2 (decoding.md §4.4): a block is decided in parts, left to right. A step writes the masked rows of the
/// first part that has any whose confidence is above `threshold`, and the best one. A pace holds within the part.
class SubBlock final : public Procedure {
 public:
  struct Settings {
    int32_t length = 8;      ///< Of a part, from the block's first position. >= 1
    float threshold = 0.9f;  ///< [0, 1]
  };
  explicit SubBlock(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<SubBlock>(*this); }
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  bool writes_always() const override { return true; }

 private:
  Settings settings_;
};

}  // namespace quicksilver
