#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// WINO, wide in and narrow out (decoding.md §11). A step writes the masked rows above `threshold`, at most 0.7 of the
/// masks (at least 5, at most 20), at least the best. When it writes more than one, tokens of earlier steps to which
/// their shadow row gives less than `verify_threshold` are masked again: fewer than the last step wrote, the least
/// probable ones, so that the block gets on.
class Wino final : public Procedure {
 public:
  struct Settings {
    float threshold = 0.6f;         ///< [0, 1]
    float verify_threshold = 0.9f;  ///< [0, 1]
  };
  explicit Wino(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<Wino>(*this); }
  void OpenBlock(const CanvasView& view) override;
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  int32_t steps_max(int32_t positions) const override { return positions + kLastWrittenAtFirst + 2; }
  bool stateful() const override { return true; }
  bool edits() const override { return true; }
  bool wants_shadow() const override { return true; }

 private:
  /// The reference's, which bounds what a first step may mask of a draft.
  static constexpr int32_t kLastWrittenAtFirst = 30;

  std::vector<uint8_t> Accept(absl::Span<const float> rank, int32_t commits_min, bool& paced) const;

  Settings settings_;
  int32_t last_written_ = kLastWrittenAtFirst;
};

}  // namespace quicksilver
