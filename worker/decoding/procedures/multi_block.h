#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "worker/decoding/procedure.h"
#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

/// d3LLM's selection over several blocks at a time (decoding.md §14, without its delayed cache). The open block is the
/// first that has masks; the one behind a block exists when `block_add_threshold` of that one's positions are written.
/// A step writes, of all masked rows of blocks that exist, those whose entropy is at most `threshold` and the one of
/// the lowest; and the best of the open block, unless it got one. (The reference gives that to the first "full" block
/// with masks. That is the open one whatever decoded_token_threshold is, since all before it are complete.)
///
/// Nothing but the canvas is remembered: a threshold of 0 adds all blocks at once, where the reference adds one a step.
/// The rule's confidence is raw, so that entropies are of the raw softmax. A pace holds in the open block.
class MultiBlock final : public Procedure {
 public:
  struct Settings {
    float threshold = 0.5f;            ///< Nats. [0, 20]
    float block_add_threshold = 0.1f;  ///< [0, 1]
    int32_t block_length = 32;         ///< Of all blocks but the last. >= 1
    /// Once one of these, ascending, is written, all behind the first of them becomes the same: the reference's early
    /// stop. Empty: off.
    std::vector<TokenId> eos_ids;
  };
  explicit MultiBlock(Settings settings) : settings_(std::move(settings)) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<MultiBlock>(*this); }
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  bool writes_always() const override { return true; }
  bool writes_ahead() const override { return true; }

 private:
  int32_t ExistingEnd(const CanvasView& view) const;
  void EndAtEos(const CanvasView& view, std::vector<TokenWrite>& writes) const;

  Settings settings_;
};

}  // namespace quicksilver
