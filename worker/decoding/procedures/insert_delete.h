#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "worker/decoding/procedure.h"
#include "worker/decoding/procedures/rows.h"

namespace quicksilver {

/// LLaDA2.2's decoding with insertion and deletion (decoding.md §6). It is TokenEdit's, but any row may also say
/// DELETE, which drops its position, or INSERT, which puts a mask in front of its old token; what follows in the block
/// moves up or down, and the block is filled up with masks or cut. Masks that were there at the beginning are original,
/// those that come later introduced.
///
/// A step that sees a block again changes the least certain of the tokens that it would write to one not tried there
/// before. After `post_steps_max` forwards without an original mask, or as many as the block's positions and these
/// together, one last step fills all masks and writes no control token.
///
/// A mask is never predicted (decoding.md §0.5), so what was resolved stays so; the reference lets edits mask again.
///
/// Fixed tokens do not move: in front of the last one of a block a row that says DELETE or INSERT takes its next best.
/// So does every row of a step that keeps up a pace, and the block then closes as soon as it has no mask.
class InsertDelete final : public Procedure {
 public:
  struct Settings {
    float threshold = 0.5f;                      ///< [0, 1]
    std::optional<float> edit_threshold = 0.0f;  ///< [0, 1]; none: written tokens stay, but for the moves.
    int32_t post_steps_max = 16;                 ///< >= 0, of a block in all.
    TokenId delete_id = -1;
    TokenId insert_id = -1;
  };
  explicit InsertDelete(const Settings& settings) : settings_(settings) {}

  std::unique_ptr<Procedure> Clone() const override { return std::make_unique<InsertDelete>(*this); }
  void OpenBlock(const CanvasView& view) override;
  void Ask(const CanvasView& view, std::vector<RowAsk>& rows) const override;
  Decision Decide(const CanvasView& view, const StepNumbers& numbers) override;
  int32_t steps_max(int32_t positions) const override { return positions + settings_.post_steps_max + 2; }
  bool stateful() const override { return true; }
  bool edits() const override { return true; }
  bool wants_tops() const override { return true; }

 private:
  /// One position of the open block.
  struct Row {
    TokenId token = 0;
    bool original = false;  ///< A mask that was there when the block was opened, wherever it stood then.
    float confidence = 0.0f;
    float log_probability = 0.0f;
  };
  /// What a row of the step would write.
  struct Proposal {
    bool free = false;
    bool written = false;
    TokenId token = 0;
    float confidence = 0.0f;
    float log_probability = 0.0f;
    double log_sum_exp = 0.0;
    absl::Span<const TopLogit> tops;
  };
  struct Step {
    std::vector<Proposal> proposals;  ///< One a row.
    int32_t movable_first = 0;        ///< Positions before it take no control token.
    bool is_final = false;
    bool paced = false;
  };

  bool IsControl(TokenId id) const { return id == settings_.delete_id || id == settings_.insert_id; }
  std::set<TokenId> Controls() const { return {settings_.delete_id, settings_.insert_id}; }
  void TakeNextBest(const std::set<TokenId>& refused, Proposal& row) const;
  Step Propose(const CanvasView& view, const StepNumbers& numbers) const;
  void SelectMasks(const CanvasView& view, Step& step) const;
  void SelectEdits(const CanvasView& view, Step& step) const;
  void BreakLoop(Step& step);
  std::vector<Row> Rewritten(const CanvasView& view, const Step& step) const;

  Settings settings_;
  PositionRange open_;
  int32_t movable_first_ = 0;  // No fixed position of the block from here on.
  int32_t steps_ = 0;
  int32_t post_steps_ = 0;
  std::vector<Row> rows_;                       // [open_]
  std::set<std::vector<TokenId>> seen_;         // What the block held before earlier steps. At most steps_max().
  std::map<int32_t, std::set<TokenId>> tried_;  // By position: what earlier steps wrote there.
};

}  // namespace quicksilver
