#include "worker/decoding/procedures/sub_block.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"
#include "worker/decoding/procedures/autoregressive.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

/// Rows of a block [0, confidence.size()) of which those with a confidence below 0 are written.
struct Row {
  std::vector<TokenId> tokens;
  std::vector<uint8_t> fixed;
  CanvasView view;

  explicit Row(const std::vector<float>& confidence) : fixed(confidence.size()) {
    for (const float c : confidence) tokens.push_back(c < 0.0f ? 1 : FakeModel::kMask);
    view.tokens = tokens;
    view.fixed = fixed;
    view.mask_id = FakeModel::kMask;
    view.end = view.answer_end = static_cast<int32_t>(tokens.size());
  }
};

std::vector<int32_t> Written(Procedure& procedure, const std::vector<float>& confidence) {
  const Row row(confidence);
  std::vector<RowAsk> asked;
  procedure.Ask(row.view, asked);
  std::vector<RowChoice> choices;
  for (const RowAsk& ask : asked) {
    choices.push_back({});
    choices.back().token = 2;
    choices.back().confidence = confidence[static_cast<size_t>(ask.position)];
  }
  std::vector<int32_t> positions;
  for (const TokenWrite& write : procedure.Decide(row.view, {choices, {}}).writes) positions.push_back(write.position);
  return positions;
}

TEST(SubBlockTest, TheFirstPartWithMasksIsDecidedAlone) {
  SubBlock procedure({2, 0.9f});
  EXPECT_THAT(Written(procedure, {0.1f, 0.2f, 0.99f, 0.99f}), ElementsAre(1));
  EXPECT_THAT(Written(procedure, {0.95f, 0.92f, 0.99f, 0.99f}), ElementsAre(0, 1));
  EXPECT_THAT(Written(procedure, {-1.0f, 0.2f, 0.99f, 0.99f}), ElementsAre(1));
  EXPECT_THAT(Written(procedure, {-1.0f, -1.0f, 0.3f, 0.95f}), ElementsAre(3));
}

TEST(SubBlockTest, TheLastPartMayBeShort) {
  SubBlock procedure({2, 0.9f});
  EXPECT_THAT(Written(procedure, {-1.0f, -1.0f, -1.0f, -1.0f, 0.3f}), ElementsAre(4));
}

TEST(SubBlockTest, AConfidenceAtTheThresholdWaits) {
  SubBlock procedure({4, 0.9f});
  EXPECT_THAT(Written(procedure, {0.9f, 0.95f, 0.91f, 0.5f}), ElementsAre(1, 2));
}

// Parts are counted from the block's beginning, also when it holds the prompt's tail.
TEST(SubBlockTest, ThePromptsTailShortensItsPart) {
  ProcedureRun::Canvas canvas = {3, 5, 8, 0};
  SubBlock procedure({4, 0.0f});
  ProcedureRun run(procedure, canvas, NetworkOf({1}));
  for (const size_t count : {1u, 4u}) {
    run.Step();
    EXPECT_EQ(run.decision().writes.size(), count);
  }
  EXPECT_TRUE(run.done());
}

TEST(AutoregressiveTest, WritesTheFirstMask) {
  Autoregressive procedure;
  EXPECT_THAT(Written(procedure, {-1.0f, 0.1f, 0.99f}), ElementsAre(1));
  EXPECT_THAT(Written(procedure, {-1.0f, -1.0f, 0.5f}), ElementsAre(2));
}

}  // namespace
}  // namespace quicksilver
