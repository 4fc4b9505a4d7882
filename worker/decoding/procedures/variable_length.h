#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"
#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

/// DAEDAL (decoding.md §13): the answer's length is found and grows.
///
/// The eos confidence of a canvas is the sum of the eos probabilities of the last `eos_window` rows of the answer whose
/// arg-max is eos, divided by `eos_window`. While nothing of the answer is written and that is below `eos_threshold`,
/// a step adds `expansion` masks at the end of the answer; then one puts eos_window / 2 eos tokens there. From then on
/// a step writes the masked rows of the open block above `threshold`, at least the best; and while the eos confidence
/// is below `expand_eos_threshold`, the least certain masked row, if below `low_threshold`, becomes `expansion` masks.
/// What is pushed out of the block goes to the ones behind.
///
/// It knows nothing but the canvas. Where fixed tokens stand behind, nothing is inserted. A pace expands nothing.
class VariableLength final : public Procedure {
 public:
  struct Settings {
    float threshold = 0.9f;             ///< [0, 1]
    float low_threshold = 0.1f;         ///< [0, 1]
    int32_t expansion = 8;              ///< >= 1
    float eos_threshold = 0.5f;         ///< [0, 1]
    float expand_eos_threshold = 0.9f;  ///< [0, 1]
    int32_t eos_window = 32;            ///< >= 1
    TokenId eos_id = -1;
    int32_t length_max = 0;  ///< Most positions of the answer.
    bool sampled = false;    ///< Tokens are drawn: what a row's arg-max is must be asked for.
  };
  explicit VariableLength(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<VariableLength>(*this); }
  /// Every row of the answer while that can grow, else the default's.
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  /// Every position that the answer can grow by may add a mask to one block.
  int32_t steps_max(int32_t positions) const override {
    return positions + settings_.length_max + settings_.expansion + 2;
  }
  bool writes_ahead() const override { return true; }
  bool wants_tops() const override { return settings_.sampled; }

 private:
  bool CanGrow(const CanvasView& view) const;
  bool IsBlank(const CanvasView& view) const;
  float EosConfidence(const StepNumbers& numbers) const;
  Decision Lengthen(const CanvasView& view, bool enough) const;
  void Expand(const CanvasView& view, const StepNumbers& numbers, int32_t position, Decision& decision) const;

  Settings settings_;
};

}  // namespace quicksilver
