#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// LLaDA2.1's threshold decoding with editing (decoding.md §5). A step writes the masked rows above `threshold`, at
/// least the `commits_min` best; and it replaces written tokens of the open block whose row now prefers another one
/// with more than `edit_threshold`. When the last mask is gone, up to `post_steps_max` more forwards may edit, until
/// one changes nothing; under a pace none.
class TokenEdit final : public Procedure {
 public:
  struct Settings {
    float threshold = 0.7f;                      ///< [0, 1]
    std::optional<float> edit_threshold = 0.5f;  ///< [0, 1]; none: no editing, which 0, every change, is not.
    int32_t post_steps_max = 16;                 ///< >= 0
    int32_t commits_min = 1;                     ///< num_to_transfer. >= 1
  };
  explicit TokenEdit(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<TokenEdit>(*this); }
  void OpenBlock(const CanvasView& view) override;
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  int32_t steps_max(int32_t positions) const override { return positions + settings_.post_steps_max + 2; }
  bool stateful() const override { return true; }
  bool edits() const override { return settings_.edit_threshold.has_value(); }

 private:
  Settings settings_;
  int32_t post_steps_ = 0;  // Forwards of a block without masks.
};

}  // namespace quicksilver
