#include "worker/decoding/procedures/wino.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

/// The `count` positions of the largest keys, ties: the first.
std::vector<int32_t> Largest(std::vector<std::pair<double, int32_t>> keyed, size_t count) {
  std::stable_sort(keyed.begin(), keyed.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<int32_t> positions;
  for (size_t i = 0; i < std::min(count, keyed.size()); ++i) positions.push_back(keyed[i].second);
  return positions;
}

/// decoding.md §11, one block after the other.
std::vector<std::vector<TokenId>> PlainWino(const FakeModel& model, const Wino::Settings& settings, int32_t block,
                                            std::vector<TokenId> tokens) {
  std::vector<std::vector<TokenId>> canvases;
  for (int32_t first = 3; first < static_cast<int32_t>(tokens.size()); first += block) {
    const int32_t end = std::min(first + block, static_cast<int32_t>(tokens.size()));
    size_t last = 30;
    while (true) {
      std::vector<std::pair<double, int32_t>> masked, above, doubted;
      for (int32_t p = first; p < end; ++p) {
        const TokenId token = tokens[static_cast<size_t>(p)];
        if (token == FakeModel::kMask) {
          const std::vector<float> logits = model.Logits(tokens, p);
          const float confidence = static_cast<float>(Softmax(logits)[static_cast<size_t>(BestId(logits))]);
          masked.push_back({confidence, p});
          if (confidence > settings.threshold) above.push_back({confidence, p});
        } else {
          const double q = Softmax(model.Logits(tokens, p, true))[static_cast<size_t>(token)];
          if (static_cast<float>(q) < settings.verify_threshold) doubted.push_back({-q, p});
        }
      }
      if (masked.empty()) break;
      const size_t cap =
          static_cast<size_t>(std::clamp(static_cast<int>(0.7 * static_cast<double>(masked.size())), 5, 20));
      const std::vector<int32_t> accepted = above.empty() ? Largest(masked, 1) : Largest(above, cap);
      std::vector<int32_t> remasked;
      if (accepted.size() > 1) remasked = Largest(doubted, doubted.size() >= last ? last - 1 : doubted.size());
      const std::vector<TokenId> seen = tokens;
      for (const int32_t p : accepted) tokens[static_cast<size_t>(p)] = BestId(model.Logits(seen, p));
      for (const int32_t p : remasked) tokens[static_cast<size_t>(p)] = FakeModel::kMask;
      last = accepted.size();
      canvases.push_back(tokens);
    }
  }
  return canvases;
}

TEST(WinoTest, DecidesAsThePlainLoopDoes) {
  int64_t remasked = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    const FakeModel model = {seed, 2.5f, 1.2f};
    Wino::Settings settings;
    settings.threshold = 0.2f;
    settings.verify_threshold = 0.25f;
    ProcedureRun::Canvas canvas;
    canvas.answer = 60;
    canvas.block_length = 40;
    Wino wino(settings);
    ProcedureRun run(wino, canvas, NetworkOf(model));
    const std::vector<TokenId> tokens = run.tokens();
    const std::vector<std::vector<TokenId>> canvases = run.RunToEnd();
    EXPECT_EQ(canvases, PlainWino(model, settings, 40, tokens));
    for (size_t i = 1; i < canvases.size(); ++i) {
      for (size_t p = 0; p < tokens.size(); ++p) {
        remasked += canvases[i][p] == FakeModel::kMask && canvases[i - 1][p] != FakeModel::kMask ? 1 : 0;
      }
    }
  }
  EXPECT_GT(remasked, 100) << "nothing was masked again, so nothing was compared";
}

struct Numbers {
  std::vector<float> confidence;  ///< Of the masked rows.
  std::vector<float> verified;    ///< Of the shadow rows.
};

/// One step over a block of which the first positions are written.
Decision StepOf(Wino& wino, const Numbers& numbers, int32_t commits_min = 0) {
  std::vector<TokenId> tokens(numbers.verified.size(), 1);
  tokens.resize(numbers.verified.size() + numbers.confidence.size(), FakeModel::kMask);
  const std::vector<uint8_t> fixed(tokens.size());
  std::vector<RowChoice> choices(tokens.size());
  for (size_t i = 0; i < numbers.confidence.size(); ++i) {
    choices[i].token = 2;
    choices[i].confidence = numbers.confidence[i];
  }
  for (size_t i = 0; i < numbers.verified.size(); ++i) {
    choices[numbers.confidence.size() + i].asked_probability = numbers.verified[i];
  }
  CanvasView view;
  view.tokens = tokens;
  view.fixed = fixed;
  view.mask_id = FakeModel::kMask;
  view.end = view.answer_end = static_cast<int32_t>(tokens.size());
  view.commits_min = commits_min;
  return wino.Decide(view, {choices, {}});
}

std::vector<int32_t> Positions(const Decision& decision, TokenId token) {
  std::vector<int32_t> positions;
  for (const TokenWrite& write : decision.writes) {
    if (write.token == token) positions.push_back(write.position);
  }
  return positions;
}

TEST(WinoTest, AShadowRowIsAskedForTheTokenOfEachWrittenPosition) {
  Wino wino({});
  const std::vector<TokenId> tokens = {9, 4, FakeModel::kMask, 6};
  const std::vector<uint8_t> fixed = {1, 0, 0, 1};
  CanvasView view;
  view.tokens = tokens;
  view.fixed = fixed;
  view.mask_id = FakeModel::kMask;
  view.answer_first = 1;
  view.end = view.answer_end = 4;
  std::vector<RowAsk> rows;
  wino.Ask(view, rows);
  ASSERT_EQ(rows.size(), 2u) << "fixed tokens are not verified";
  EXPECT_EQ(rows[0].position, 2);
  EXPECT_FALSE(rows[0].shadow);
  EXPECT_EQ(rows[1].position, 1);
  EXPECT_EQ(rows[1].asked_id, 4);
  EXPECT_TRUE(rows[1].shadow);
}

TEST(WinoTest, WithOneAcceptedRowNothingIsVerified) {
  Wino wino({});
  const Decision decision = StepOf(wino, {{0.5f, 0.4f}, {0.1f, 0.1f}});
  EXPECT_THAT(Positions(decision, 2), ElementsAre(2));
  EXPECT_THAT(Positions(decision, FakeModel::kMask), IsEmpty());
}

TEST(WinoTest, AtMostAShareOfTheMasksIsAccepted) {
  Wino wino({});
  const std::vector<float> sure(10, 0.9f);
  EXPECT_EQ(StepOf(wino, {sure, {}}).writes.size(), 7u);
  EXPECT_EQ(StepOf(wino, {{0.9f, 0.9f, 0.9f, 0.9f, 0.9f, 0.9f}, {}}).writes.size(), 5u);
  EXPECT_EQ(StepOf(wino, {std::vector<float>(64, 0.9f), {}}).writes.size(), 20u);
}

// The step before accepted two, so one may be masked again: the least probable.
TEST(WinoTest, FewerAreMaskedAgainThanTheStepBeforeAccepted) {
  Wino wino({});
  StepOf(wino, {{0.9f, 0.9f, 0.1f}, {}});
  const Decision decision = StepOf(wino, {{0.9f, 0.9f}, {0.5f, 0.3f, 0.95f}});
  EXPECT_THAT(Positions(decision, FakeModel::kMask), ElementsAre(1));
  EXPECT_THAT(Positions(decision, 2), ElementsAre(3, 4));
}

TEST(WinoTest, ABlockBeginsWithTheReferencesThirty) {
  Wino wino({});
  StepOf(wino, {{0.9f, 0.1f, 0.1f}, {}});
  wino.OpenBlock(CanvasView());
  const Numbers doubts = {{0.9f, 0.9f}, std::vector<float>(40, 0.5f)};
  EXPECT_EQ(Positions(StepOf(wino, doubts), FakeModel::kMask).size(), 29u);
}

TEST(WinoTest, APaceIsNotLostToRemasking) {
  Wino wino({});
  const Decision decision = StepOf(wino, {{0.9f, 0.9f, 0.9f}, {0.5f, 0.3f, 0.2f}}, /*commits_min=*/2);
  EXPECT_THAT(Positions(decision, FakeModel::kMask), ElementsAre(2));
  EXPECT_TRUE(decision.paced);
}

}  // namespace
}  // namespace quicksilver
