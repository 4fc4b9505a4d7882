#include "worker/decoding/procedures/token_edit.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr TokenId kMask = FakeModel::kMask;

/// A network that is `confident` of one token a row.
struct Say {
  TokenId token;
  float confident;
};
Network Saying(const std::vector<Say>* rows) {
  return [rows](absl::Span<const TokenId>, const RowAsk& row) {
    const Say& say = (*rows)[static_cast<size_t>(row.position)];
    std::vector<float> logits(FakeModel::kVocabulary, std::log((1.0f - say.confident) / (FakeModel::kVocabulary - 1)));
    logits[static_cast<size_t>(say.token)] = std::log(say.confident);
    return logits;
  };
}

/// One block of four positions, no prompt.
struct Block {
  explicit Block(const TokenEdit::Settings& settings, ProcedureRun::Canvas canvas = {0, 4, 4, 0})
      : procedure(settings), run(procedure, canvas, Saying(&rows)) {}

  std::vector<TokenId> Step(std::vector<Say> said) {
    rows = std::move(said);
    run.Step();
    return run.tokens();
  }

  std::vector<Say> rows;
  TokenEdit procedure;
  ProcedureRun run;
};

TEST(TokenEditTest, FillsAboveTheThresholdAndAtLeastTheBest) {
  Block block({0.7f, 0.5f});
  EXPECT_THAT(block.Step({{1, 0.6f}, {2, 0.5f}, {3, 0.4f}, {4, 0.3f}}), ElementsAre(1, kMask, kMask, kMask));
  EXPECT_THAT(block.Step({{1, 0.6f}, {2, 0.8f}, {3, 0.71f}, {4, 0.3f}}), ElementsAre(1, 2, 3, kMask));
}

TEST(TokenEditTest, FillsAtLeastCommitsMin) {
  Block block({0.7f, 0.5f, 16, 3});
  EXPECT_THAT(block.Step({{1, 0.6f}, {2, 0.5f}, {3, 0.4f}, {4, 0.3f}}), ElementsAre(1, 2, 3, kMask));
}

TEST(TokenEditTest, ReplacesAWrittenTokenAboveTheEditThreshold) {
  Block block({0.7f, 0.5f});
  block.Step({{1, 0.9f}, {2, 0.9f}, {3, 0.4f}, {4, 0.3f}});
  EXPECT_THAT(block.Step({{5, 0.51f}, {6, 0.5f}, {3, 0.4f}, {4, 0.3f}}), ElementsAre(5, 2, 3, kMask))
      << "at the threshold a token stays";
}

TEST(TokenEditTest, AFullBlockStaysOpenUntilAForwardChangesNothing) {
  Block block({0.7f, 0.5f});
  block.Step({{1, 0.9f}, {2, 0.9f}, {3, 0.9f}, {4, 0.9f}});
  EXPECT_FALSE(block.run.done());
  EXPECT_THAT(block.Step({{5, 0.9f}, {2, 0.9f}, {3, 0.9f}, {4, 0.9f}}), ElementsAre(5, 2, 3, 4));
  EXPECT_FALSE(block.run.done());
  EXPECT_THAT(block.Step({{5, 0.9f}, {6, 0.4f}, {3, 0.9f}, {4, 0.9f}}), ElementsAre(5, 2, 3, 4));
  EXPECT_TRUE(block.run.done());
  EXPECT_EQ(block.run.forwards(), 3);
}

// A token that changes to and fro with every forward.
TEST(TokenEditTest, PostStepsBoundAnOscillation) {
  Block block({0.7f, 0.5f, 5});
  for (TokenId token = 1; !block.run.done() && token < 20; ++token) {
    block.Step({{token, 0.9f}, {2, 0.9f}, {3, 0.9f}, {4, 0.9f}});
  }
  EXPECT_EQ(block.run.forwards(), 1 + 5);
  EXPECT_THAT(block.run.tokens(), ElementsAre(6, 2, 3, 4));
}

TEST(TokenEditTest, WithoutPostStepsABlockClosesWhenItIsFull) {
  Block block({0.7f, 0.5f, 0});
  block.Step({{1, 0.9f}, {2, 0.9f}, {3, 0.9f}, {4, 0.9f}});
  EXPECT_TRUE(block.run.done());
}

// Thresholds of 0 mean opposite things in the references, so off is a value of its own.
TEST(TokenEditTest, EditsEveryChangeAtZeroAndNoneWhenOff) {
  Block zero({0.7f, 0.0f});
  zero.Step({{1, 0.9f}, {2, 0.9f}, {3, 0.4f}, {4, 0.3f}});
  EXPECT_THAT(zero.Step({{5, 0.06f}, {2, 0.9f}, {3, 0.9f}, {4, 0.3f}}), ElementsAre(5, 2, 3, kMask));

  Block off({0.7f, std::nullopt});
  EXPECT_FALSE(off.procedure.edits());
  off.Step({{1, 0.9f}, {2, 0.9f}, {3, 0.4f}, {4, 0.3f}});
  EXPECT_THAT(off.Step({{5, 0.99f}, {6, 0.99f}, {3, 0.9f}, {4, 0.9f}}), ElementsAre(1, 2, 3, 4));
  EXPECT_TRUE(off.run.done());
}

TEST(TokenEditTest, PromptAndFixedTokensAreNotAskedFor) {
  ProcedureRun::Canvas canvas = {1, 3, 4, 0};
  canvas.fixed = {{2, 9}};
  Block block({0.7f, 0.0f}, canvas);
  std::vector<RowAsk> rows;
  block.procedure.Ask(block.run.View(), rows);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].position, 1);
  EXPECT_EQ(rows[1].position, 3);
}

TEST(TokenEditTest, ADraftIsEditedAndThenClosed) {
  ProcedureRun::Canvas canvas = {0, 4, 4, 0};
  canvas.draft = {{0, 1}, {1, 2}, {2, 3}, {3, 4}};
  Block block({0.7f, 0.5f}, canvas);
  EXPECT_THAT(block.Step({{1, 0.9f}, {8, 0.9f}, {3, 0.9f}, {4, 0.9f}}), ElementsAre(1, 8, 3, 4));
  block.Step({{1, 0.9f}, {8, 0.9f}, {3, 0.9f}, {4, 0.9f}});
  EXPECT_TRUE(block.run.done());
  EXPECT_THAT(block.run.decision().writes, IsEmpty());
}

TEST(TokenEditTest, APaceSkipsThePostSteps) {
  ProcedureRun::Canvas canvas = {0, 4, 4, 0};
  canvas.commits_min = 2;
  Block block({0.7f, 0.5f}, canvas);
  block.Step({{1, 0.6f}, {2, 0.5f}, {3, 0.4f}, {4, 0.3f}});
  EXPECT_TRUE(block.run.decision().paced);
  block.Step({{1, 0.6f}, {2, 0.5f}, {3, 0.4f}, {4, 0.3f}});
  EXPECT_TRUE(block.run.done());
}

}  // namespace
}  // namespace quicksilver
