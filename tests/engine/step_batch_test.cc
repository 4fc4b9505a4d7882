#include "worker/engine/step_batch.h"

#include <set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kPageSize = 4;

RunningSequence Running(int32_t prompt, const SamplingRule& sampling = {}) {
  SequenceSpec spec;
  spec.mask_id = 99;
  spec.positions_max = 64;
  for (int32_t i = 0; i < prompt; ++i) spec.prompt.push_back(i);
  spec.tokens_max = 6;
  spec.stop_ids = {7, 9};
  spec.sampling = sampling;
  spec.decoding.block_length = 4;
  spec.decoding.steps = 4;
  RunningSequence running{.sequence = Sequence(spec)};
  for (int32_t page = 0; page < 4; ++page) running.pages.push_back(10 + page);
  return running;
}

std::vector<int32_t> Array(const int32_t* first, int32_t count) { return {first, first + count}; }

/// A step's arrays in host memory.
struct LaidOut {
  LaidOut(absl::Span<const PlannedSegment> plan, const StepShape& shape) : batch(kPageSize, history), memory(1 << 16) {
    arrays = MapStepArrays(reinterpret_cast<char*>(memory.data()), shape);
    batch.LayOut(plan, shape, arrays);
  }
  HistorySlots history{0};
  StepBatch batch;
  std::vector<uint64_t> memory;
  StepArrays arrays;
};

TEST(StepBatchTest, ABlocksMaskedRowsAskForTokensAndItsPromptRowsDoNot) {
  RunningSequence running = Running(6);
  const PlannedSegment planned = {&running, running.sequence.Next(64)};
  const StepShape shape = StepBatch::ShapeOf({planned});
  EXPECT_EQ(shape.rows, 8);
  EXPECT_EQ(shape.requests(), 2);
  EXPECT_EQ(StepBatch::CleanRows({planned}), 4) << "the prompt's whole block; its tail is part of the open one";
  LaidOut step({planned}, shape);
  EXPECT_THAT(Array(step.arrays.ids, 8), ElementsAre(0, 1, 2, 3, 4, 5, 99, 99));
  EXPECT_THAT(Array(step.arrays.positions, 8), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(Array(step.arrays.slots, 8), ElementsAre(40, 41, 42, 43, 44, 45, 46, 47));
  EXPECT_THAT(Array(step.arrays.head_rows[0], 2), ElementsAre(6, 7));
  EXPECT_EQ(step.arrays.block_rows[1].id_row, 7);
  EXPECT_EQ(step.arrays.requests[1].place.position, 7u);
  EXPECT_EQ(step.arrays.blocks[0].live, 2);
  EXPECT_THAT(Array(step.arrays.token_lists + step.arrays.blocks[0].first_stop, 2), ElementsAre(7, 9));
  EXPECT_THAT(Array(step.arrays.page_table, 2), ElementsAre(10, 11));
}

TEST(StepBatchTest, RowsWithTopListsComeAfterTheOthers) {
  RunningSequence with = Running(1, {.temperature = 1.0f, .top_k = 5}), without = Running(2);
  const std::vector<PlannedSegment> plan = {{&with, with.sequence.Next(64)}, {&without, without.sequence.Next(64)}};
  const StepShape shape = StepBatch::ShapeOf(plan);
  LaidOut step(plan, shape);
  EXPECT_EQ(shape.head_rows[0], 2);
  EXPECT_EQ(shape.head_rows[1], 3);
  EXPECT_EQ(step.batch.open_rows(0).first_row, 2);
  EXPECT_EQ(step.batch.open_rows(1).first_row, 0);
  EXPECT_THAT(Array(step.arrays.head_rows[1], 3), ElementsAre(1, 2, 3));
  EXPECT_THAT(Array(step.arrays.head_rows[0], 2), ElementsAre(6, 7));
}

TEST(StepBatchTest, PaddingAsksForNothingAndLeavesNoKey) {
  RunningSequence running = Running(6);
  const PlannedSegment planned = {&running, running.sequence.Next(64)};
  const StepShape shape = RoundUp(StepBatch::ShapeOf({planned}), 64, 16);
  ASSERT_GT(shape.requests(), 2);
  LaidOut step({planned}, shape);
  for (int32_t i = 8; i < shape.rows; ++i) EXPECT_EQ(step.arrays.slots[i], -1);
  for (int32_t i = 1; i < shape.segments; ++i) EXPECT_EQ(step.arrays.segments[i].rows, 0);
  for (int32_t i = 1; i < shape.blocks; ++i) EXPECT_EQ(step.arrays.blocks[i].rows, 0);
  for (int32_t i = 2; i < shape.requests(); ++i) EXPECT_EQ(step.arrays.requests[i].row, -1);
}

TEST(StepShapeTest, RoundsUpToFewShapesThatHoldTheExactOne) {
  std::set<StepShape> shapes;
  for (int32_t rows = 1; rows <= 2048; ++rows) {
    StepShape shape;
    shape.rows = rows;
    shape.segments = 1 + (rows - 1) / 32;
    shape.segment_rows = std::min(rows, 32);
    shape.blocks = shape.segments;
    shape.head_rows[0] = rows;
    const StepShape up = RoundUp(shape, 2048, 64);
    EXPECT_GE(up.rows, rows);
    EXPECT_LE(up.rows, std::max(8, rows * 3 / 2));
    EXPECT_GE(up.segments, shape.segments);
    EXPECT_GE(up.segment_rows, shape.segment_rows);
    EXPECT_LE(up.segment_rows, 32) << "short segments stay short";
    EXPECT_GE(up.blocks, shape.blocks);
    EXPECT_GE(up.head_rows[0], rows);
    EXPECT_EQ(up.head_rows[1], 0);
    shapes.insert(up);
    // However many of the rows need logits, with and without top lists.
    for (int32_t masked = 0; masked <= rows; masked += 1 + rows / 40) {
      shape.head_rows[0] = masked;
      shape.head_rows[1] = rows - masked;
      const StepShape other = RoundUp(shape, 2048, 64);
      EXPECT_GE(other.head_rows[0], masked);
      EXPECT_GE(other.head_rows[1], rows - masked);
      shapes.insert(other);
    }
  }
  // 17 row counts; for each at most 3 head row counts of either kind, and two sizes of the largest segment.
  EXPECT_LE(shapes.size(), 17u * 9 * 2);
  EXPECT_GE(shapes.size(), 17u);
}

TEST(StepShapeTest, NeverExceedsTheRowsOfAStep) {
  StepShape shape;
  shape.rows = shape.head_rows[0] = shape.head_rows[1] = 70;
  const StepShape up = RoundUp(shape, 77, 64);
  EXPECT_EQ(up.rows, 77);
  EXPECT_EQ(up.head_rows[1], 77);
}

}  // namespace
}  // namespace quicksilver
