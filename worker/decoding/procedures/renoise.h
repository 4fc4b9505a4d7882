#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"

namespace quicksilver {

/// DiffusionGemma's sampler (decoding.md §7). What the network sees of an open block is a canvas x of its own, which
/// begins as noise or as a draft: every step draws a token for each row at the step's temperature, takes the rows of
/// least entropy whose entropies before them sum up to at most entropy_bound, and gives all others new noise. No row is
/// kept for good. The block is written once, with the most likely tokens of the last step: after so many steps, or when
/// those tokens have not changed in the last stability_steps steps and the mean entropy is below the threshold.
class Renoise final : public Procedure {
 public:
  struct Settings {
    int32_t steps = 48;                   ///< Of a block. >= 1
    float entropy_bound = 0.1f;           ///< In nats.
    float temperature_min = 0.4f;         ///< The step with `left` steps left, itself included, has temperature …
    float temperature_max = 0.8f;         ///< … min + (max - min) left / steps.
    int32_t stability_steps = 1;          ///< 0: always stable.
    float confidence_threshold = 0.005f;  ///< 0: never stops early.
    int32_t vocabulary = 0;               ///< Noise is an id below it.
    SamplingRule sampling;                ///< The request's.
    std::vector<TokenId> draft;           ///< x at the beginning, from the answer's on; -1: noise.
  };
  explicit Renoise(Settings settings) : settings_(std::move(settings)) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<Renoise>(*this); }
  void OpenBlock(const CanvasView& view) override;
  /// All rows of the block, given ones too: the next step is told what this one thought of them.
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  int32_t steps_max(int32_t positions) const override;
  bool stateful() const override { return true; }
  bool conditioned() const override { return true; }
  float Temperature(const CanvasView& view, float requested) const override;
  TokenId Input(const CanvasView& view, int32_t position) const override;

 private:
  /// What the forward number `forward` of the sequence sees at a position that was not accepted.
  TokenId NoiseAt(int32_t position, int32_t forward) const;
  void AcceptRows(const CanvasView& view, const StepNumbers& numbers);
  /// True when the most likely tokens are those of the last stability_steps steps; remembers them.
  bool IsStable(const CanvasView& view, const StepNumbers& numbers);

  Settings settings_;
  int32_t first_ = 0;                          // Of the block; the vectors count from here.
  std::vector<TokenId> input_;                 // x
  std::vector<std::vector<TokenId>> history_;  // The most likely tokens of the last steps, the oldest first.
};

}  // namespace quicksilver
