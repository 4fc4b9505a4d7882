#include "worker/decoding/procedures/klass.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

/// decoding.md §9 with whole distributions. Every block begins as the reference's first one: its first KL is huge.
std::vector<std::vector<TokenId>> DenseKlass(const FakeModel& model, const Klass::Settings& settings,
                                             std::vector<TokenId> tokens) {
  std::vector<std::vector<TokenId>> canvases;
  for (int32_t first = 3, block = 0; first < static_cast<int32_t>(tokens.size()); first += 8, ++block) {
    const int32_t end = std::min(first + 8, static_cast<int32_t>(tokens.size()));
    std::map<int32_t, std::vector<double>> previous;
    std::map<int32_t, std::vector<double>> divergences;
    const int32_t steps = std::min(settings.schedule.StepsOf(block), end - first);
    for (int32_t step = 0; std::count(tokens.begin() + first, tokens.begin() + end, FakeModel::kMask) > 0; ++step) {
      std::vector<std::pair<double, int32_t>> order;
      std::map<int32_t, TokenId> choice;
      std::vector<int32_t> ready;
      for (int32_t p = first; p < end; ++p) {
        if (tokens[static_cast<size_t>(p)] != FakeModel::kMask) continue;
        const std::vector<float> logits = model.Logits(tokens, p);
        const std::vector<double> now = Softmax(logits);
        double divergence = step == 0 ? 1e9 : 0.0;
        for (size_t id = 0; step > 0 && id < now.size(); ++id) {
          divergence += now[id] * (std::log(now[id] + 1e-12) - std::log(previous[p][id] + 1e-12));
        }
        previous[p] = now;
        divergences[p].push_back(divergence);
        choice[p] = BestId(logits);
        const double confidence = now[static_cast<size_t>(choice[p])];
        order.push_back({-confidence, p});
        const std::vector<double>& history = divergences[p];
        const double kl = static_cast<double>(settings.kl_threshold);
        if (step >= 1 && confidence > static_cast<double>(settings.threshold) && history.back() < kl &&
            history[history.size() - 2] < kl) {
          ready.push_back(p);
        }
      }
      if (ready.empty()) {
        std::sort(order.begin(), order.end());
        const size_t count = static_cast<size_t>(std::max(1, ScheduledCount(end - first, steps, step)));
        for (size_t i = 0; i < std::min(count, order.size()); ++i) ready.push_back(order[i].second);
      }
      for (const int32_t p : ready) tokens[static_cast<size_t>(p)] = choice[p];
      canvases.push_back(tokens);
    }
  }
  return canvases;
}

TEST(KlassTest, DecidesAsWholeDistributionsDo) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    const FakeModel model = {seed, 3.0f, 0.3f};
    Klass::Settings settings;
    settings.threshold = 0.2f;
    settings.kl_threshold = 0.03f;
    settings.schedule = {seed % 2 == 0 ? 24 : 9, 3};
    ProcedureRun::Canvas canvas;
    canvas.answer = 22;
    Klass klass(settings);
    ProcedureRun run(klass, canvas, NetworkOf(model));
    const std::vector<TokenId> tokens = run.tokens();
    EXPECT_EQ(run.RunToEnd(), DenseKlass(model, settings, tokens));
  }
}

/// Nothing changes from step to step, and every row is sure of token 5.
std::vector<float> Settled(absl::Span<const TokenId>, const RowAsk&) {
  std::vector<float> logits(FakeModel::kVocabulary, 0.0f);
  logits[5] = 9.0f;
  return logits;
}

// decoding.md §21.7
TEST(KlassTest, NothingIsReadyInTheFirstStepsOfABlock) {
  Klass klass({0.9f, 0.01f, {16, 2}});
  ProcedureRun run(klass, ProcedureRun::Canvas(), Settled);
  const std::vector<size_t> expected = {1, 1, 6, 1, 1, 6};
  for (const size_t count : expected) {
    run.Step();
    EXPECT_EQ(run.decision().writes.size(), count) << "forward " << run.forwards();
  }
  EXPECT_TRUE(run.done());
}

// Without a mean of the step before, a sum of old could pass for a small divergence.
TEST(KlassTest, ABlockThatIsOpenedAgainBeginsAnew) {
  const Network network = [](absl::Span<const TokenId> tokens, const RowAsk& row) {
    std::vector<float> logits = Settled(tokens, row);
    for (float& z : logits) z -= 9.0f;
    return logits;
  };
  Klass klass({0.9f, 0.01f, {16, 2}});
  ProcedureRun interrupted(klass, ProcedureRun::Canvas(), network);
  interrupted.Step();
  interrupted.Step();
  ProcedureRun again(klass, ProcedureRun::Canvas(), network);
  for (const size_t count : {1u, 1u, 6u}) {
    again.Step();
    EXPECT_EQ(again.decision().writes.size(), count);
  }
}

TEST(KlassTest, AnUnsureRowWaitsForTheScheduleHoweverSettled) {
  Klass klass({0.9999f, 0.01f, {16, 2}});
  ProcedureRun run(klass, ProcedureRun::Canvas(), Settled);
  for (int i = 0; i < 4; ++i) {
    run.Step();
    EXPECT_EQ(run.decision().writes.size(), 1u);
  }
}

TEST(KlassTest, ARowThatForbidsWhatItLikedHasNotSettled) {
  int32_t step = 0;
  const Network network = [&step](absl::Span<const TokenId> tokens, const RowAsk& row) {
    std::vector<float> logits = Settled(tokens, row);
    logits[step % 2 == 0 ? 6 : 7] = -std::numeric_limits<float>::infinity();
    return logits;
  };
  Klass klass({0.9f, 0.01f, {16, 2}});
  ProcedureRun run(klass, ProcedureRun::Canvas(), network);
  for (step = 0; step < 5; ++step) {
    run.Step();
    EXPECT_EQ(run.decision().writes.size(), 1u);
  }
}

TEST(KlassTest, TheFallbackFollowsTheSchedule) {
  Klass klass({1.0f, 0.0f, {6, 2}});
  ProcedureRun run(klass, ProcedureRun::Canvas(), NetworkOf({3}));
  for (const size_t count : {3u, 3u, 2u, 3u, 3u, 2u}) {
    run.Step();
    EXPECT_EQ(run.decision().writes.size(), count);
  }
}

}  // namespace
}  // namespace quicksilver
