#include "worker/decoding/procedures/renoise.h"

#include <cmath>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kPrompt = 3;
constexpr int32_t kVocabulary = 1000;

/// A canvas of four positions behind a prompt of three, whose rows say what a test tells them to.
class RenoiseTest : public testing::Test {
 protected:
  RenoiseTest() {
    settings_.steps = 10;
    settings_.vocabulary = kVocabulary;
    settings_.sampling.seed = 5;
  }

  void Open() {
    procedure_ = std::make_unique<Renoise>(settings_);
    procedure_->OpenBlock(View());
  }
  CanvasView View() const {
    CanvasView view;
    view.tokens = tokens_;
    view.fixed = fixed_;
    view.answer_first = view.first = kPrompt;
    view.answer_end = view.end = kPrompt + 4;
    view.forwards = 20 + forwards_;
    view.block_forwards = forwards_;
    view.commits_min = commits_min_;
    return view;
  }
  /// Row i draws 100 + i and thinks `best` most likely.
  Decision Step(const std::vector<float>& entropies, const std::vector<TokenId>& best) {
    std::vector<RowChoice> choices(4);
    for (size_t i = 0; i < 4; ++i) {
      choices[i].token = static_cast<TokenId>(100 + i);
      choices[i].entropy = entropies[i];
      choices[i].best = best[i];
      choices[i].best_log_probability = std::log(0.5f);
      choices[i].finite = true;
    }
    const Decision decision = procedure_->Decide(View(), {choices, {}});
    ++forwards_;
    return decision;
  }
  std::vector<TokenId> Inputs() const {
    std::vector<TokenId> ids;
    for (int32_t p = kPrompt; p < kPrompt + 4; ++p) ids.push_back(procedure_->Input(View(), p));
    return ids;
  }
  /// What forward number `forward` of the sequence sees where nothing was accepted.
  TokenId Noise(int32_t i, uint32_t forward) const {
    const DrawPlace place = {5, 0, static_cast<uint32_t>(kPrompt + i), forward};
    return static_cast<TokenId>(kVocabulary * UniformDraw(place, 0, DrawPurpose::kNoise));
  }

  Renoise::Settings settings_;
  std::unique_ptr<Renoise> procedure_;
  std::vector<TokenId> tokens_ = {7, 8, 9, -1, -1, -1, -1};
  std::vector<uint8_t> fixed_ = {1, 1, 1, 0, 0, 0, 0};
  int32_t forwards_ = 0;
  int32_t commits_min_ = 0;
};

const std::vector<TokenId> kBest = {41, 42, 43, 44};

TEST_F(RenoiseTest, BeginsWithNoiseOfItsFirstForward) {
  Open();
  EXPECT_THAT(Inputs(), ElementsAre(Noise(0, 20), Noise(1, 20), Noise(2, 20), Noise(3, 20)));
}

// decoding.md §21: the sums before the rows are 0, 0, .02 and .07.
TEST_F(RenoiseTest, AcceptsRowsWhileTheEntropyBeforeThemIsWithinTheBound) {
  settings_.entropy_bound = 0.1f;
  Open();
  EXPECT_TRUE(Step({0.0f, 0.02f, 0.05f, 0.3f}, kBest).writes.empty());
  EXPECT_THAT(Inputs(), ElementsAre(100, 101, 102, 103));
  settings_.entropy_bound = 0.05f;
  forwards_ = 0;
  Open();
  Step({0.3f, 0.0f, 0.05f, 0.02f}, kBest);
  EXPECT_THAT(Inputs(), ElementsAre(Noise(0, 21), 101, 102, 103)) << "by entropy, not by place";
}

TEST_F(RenoiseTest, AcceptsTheSurestRowWhateverItsEntropy) {
  settings_.entropy_bound = 0.0f;
  Open();
  Step({2.0f, 1.5f, 1.5f, 3.0f}, kBest);
  EXPECT_THAT(Inputs(), ElementsAre(Noise(0, 21), 101, Noise(2, 21), Noise(3, 21))) << "ties: the first";
}

TEST_F(RenoiseTest, KeepsNoRowThatItAcceptedBefore) {
  settings_.entropy_bound = 0.0f;
  Open();
  Step({0.5f, 1.0f, 1.0f, 1.0f}, kBest);
  Step({1.0f, 0.5f, 1.0f, 1.0f}, kBest);
  EXPECT_THAT(Inputs(), ElementsAre(Noise(0, 22), 101, Noise(2, 22), Noise(3, 22)));
}

TEST_F(RenoiseTest, TemperatureFallsWithTheStepsThatAreLeft) {
  Open();
  EXPECT_FLOAT_EQ(procedure_->Temperature(View(), 1.7f), 0.8f);
  forwards_ = 5;
  EXPECT_FLOAT_EQ(procedure_->Temperature(View(), 1.7f), 0.6f);
  forwards_ = 9;
  EXPECT_FLOAT_EQ(procedure_->Temperature(View(), 1.7f), 0.44f);
}

TEST_F(RenoiseTest, WritesTheMostLikelyTokensOnceTheyAreStableAndSure) {
  settings_.confidence_threshold = 0.1f;
  Open();
  EXPECT_TRUE(Step({0.0f, 0.0f, 0.0f, 0.0f}, kBest).writes.empty()) << "nothing to compare with";
  EXPECT_TRUE(Step({0.2f, 0.2f, 0.2f, 0.2f}, kBest).writes.empty()) << "not sure";
  EXPECT_TRUE(Step({0.0f, 0.0f, 0.0f, 0.0f}, {41, 42, 43, 45}).writes.empty()) << "not stable";
  const Decision decision = Step({0.2f, 0.0f, 0.0f, 0.1f}, {41, 42, 43, 45});
  ASSERT_EQ(decision.writes.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(decision.writes[i].position, kPrompt + static_cast<int32_t>(i));
    EXPECT_FLOAT_EQ(decision.writes[i].confidence, 0.5f);
    EXPECT_FLOAT_EQ(decision.writes[i].log_probability, std::log(0.5f));
  }
  EXPECT_EQ(decision.writes[3].token, 45);
  EXPECT_FALSE(decision.keep_open);
}

TEST_F(RenoiseTest, StabilityLooksBackAsManyStepsAsAreAskedFor) {
  settings_.confidence_threshold = 1.0f;
  settings_.stability_steps = 0;
  Open();
  EXPECT_EQ(Step({0.0f, 0.0f, 0.0f, 0.0f}, kBest).writes.size(), 4u) << "0: always stable";
  settings_.stability_steps = 2;
  forwards_ = 0;
  Open();
  EXPECT_TRUE(Step({0.0f, 0.0f, 0.0f, 0.0f}, kBest).writes.empty());
  EXPECT_TRUE(Step({0.0f, 0.0f, 0.0f, 0.0f}, kBest).writes.empty());
  EXPECT_EQ(Step({0.0f, 0.0f, 0.0f, 0.0f}, kBest).writes.size(), 4u);
}

TEST_F(RenoiseTest, WithoutAThresholdOnlyTheStepsEndIt) {
  settings_.confidence_threshold = 0.0f;
  settings_.steps = 4;
  Open();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Step({0.0f, 0.0f, 0.0f, 0.0f}, kBest).writes.empty());
  EXPECT_EQ(Step({5.0f, 5.0f, 5.0f, 5.0f}, {1, 2, 3, 4}).writes.size(), 4u);
  EXPECT_EQ(procedure_->steps_max(4), 4);
}

TEST_F(RenoiseTest, GivenTokensAreSeenInEveryStepAndNeverWritten) {
  tokens_[4] = 77;
  fixed_[4] = 1;
  settings_.steps = 2;
  Open();
  std::vector<RowAsk> asked;
  procedure_->Ask(View(), asked);
  EXPECT_EQ(asked.size(), 4u) << "the next step is told what this one thought of a given token";
  EXPECT_EQ(Inputs()[1], 77);
  // The given row's entropy does not count.
  Step({0.2f, 9.0f, 0.0f, 0.0f}, kBest);
  EXPECT_EQ(Inputs(), (std::vector<TokenId>{100, 77, 102, 103}));
  const Decision decision = Step({0.0f, 0.0f, 0.0f, 0.0f}, kBest);
  ASSERT_EQ(decision.writes.size(), 3u);
  EXPECT_EQ(decision.writes[1].position, kPrompt + 2);
}

TEST_F(RenoiseTest, ADraftIsWhatTheFirstForwardSees) {
  settings_.draft = {31, -1, 33};
  Open();
  EXPECT_THAT(Inputs(), ElementsAre(31, Noise(1, 20), 33, Noise(3, 20)));
}

TEST_F(RenoiseTest, APaceThatWantsTheWholeCanvasWritesItAtOnce) {
  Open();
  commits_min_ = 3;
  EXPECT_TRUE(Step({1.0f, 1.0f, 1.0f, 1.0f}, kBest).writes.empty());
  commits_min_ = 4;
  const Decision decision = Step({1.0f, 1.0f, 1.0f, 1.0f}, kBest);
  EXPECT_EQ(decision.writes.size(), 4u);
  EXPECT_TRUE(decision.paced);
}

TEST_F(RenoiseTest, EqualSequencesAreGivenEqualNoiseAndChoicesOtherNoise) {
  Open();
  const std::vector<TokenId> inputs = Inputs();
  Open();
  EXPECT_EQ(Inputs(), inputs);
  settings_.sampling.choice = 1;
  Open();
  EXPECT_NE(Inputs(), inputs);
}

}  // namespace
}  // namespace quicksilver
