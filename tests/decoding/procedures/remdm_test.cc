#include "worker/decoding/procedures/remdm.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/decoding/procedures/procedure_run.h"

namespace quicksilver {
namespace {

using Schedule = Remdm::Schedule;

constexpr TokenId kMask = FakeModel::kMask;
constexpr int32_t kAnswer = 200;

Remdm::Settings SettingsOf(Schedule schedule, int32_t steps, float eta, uint64_t seed) {
  Remdm::Settings settings;
  settings.schedule = schedule;
  settings.eta = eta;
  settings.steps = {steps, 1};
  settings.sampling.seed = seed;
  return settings;
}

ProcedureRun::Canvas CanvasOf(const Remdm::Settings& settings) {
  ProcedureRun::Canvas canvas = {3, kAnswer, kAnswer, 3};
  canvas.sampling = settings.sampling;
  return canvas;
}

/// A network that is as cheap as can be; what a row says depends on its position alone.
std::vector<float> Cheap(absl::Span<const TokenId>, const RowAsk& row) {
  std::vector<float> logits(FakeModel::kVocabulary, 0.0f);
  logits[static_cast<size_t>(row.position % 5)] = static_cast<float>(row.position % 7);
  return logits;
}

TEST(RemdmTest, TheTimesOfTheLoopMeet) {
  const Remdm remdm(SettingsOf(Schedule::kLoop, 10, 0.02f, 1));
  EXPECT_DOUBLE_EQ(remdm.AlphaAt(1.0), 0.0);
  EXPECT_DOUBLE_EQ(remdm.AlphaAt(0.0), 1.0);
  EXPECT_NEAR(remdm.AlphaAt(0.5500001), 0.9, 1e-6);
  EXPECT_NEAR(remdm.AlphaAt(0.3), 0.9, 1e-6);
  EXPECT_NEAR(remdm.AlphaAt(0.0499999), 0.9, 1e-6);
  EXPECT_NEAR(remdm.AlphaAt(0.025), 0.95, 1e-6);
  EXPECT_NEAR(remdm.AlphaAt(0.775), 0.45, 1e-6);
}

// What the method promises: whatever sigma is, a row is clean with probability a(s) after the step to s.
TEST(RemdmTest, RemaskingLeavesTheShareOfCleanRowsAsItWas) {
  constexpr int32_t kSteps = 12, kRuns = 60;
  for (const Schedule schedule : {Schedule::kCap, Schedule::kRescale, Schedule::kLoop}) {
    std::vector<double> clean(kSteps, 0.0);
    int64_t remasked = 0;
    for (uint64_t seed = 1; seed <= kRuns; ++seed) {
      const Remdm::Settings settings = SettingsOf(schedule, kSteps, 0.3f, seed);
      Remdm remdm(settings);
      ProcedureRun run(remdm, CanvasOf(settings), Cheap);
      for (size_t step = 0; step < kSteps; ++step) {
        run.Step();
        clean[step] += static_cast<double>(kAnswer - std::count(run.tokens().begin(), run.tokens().end(), kMask));
        for (const TokenWrite& write : run.decision().writes) remasked += write.token == kMask ? 1 : 0;
      }
      EXPECT_TRUE(run.done());
    }
    const Remdm remdm(SettingsOf(schedule, kSteps, 0.3f, 1));
    for (int32_t step = 0; step < kSteps; ++step) {
      const double expected = remdm.AlphaAt(1.0 - (step + 1.0) / kSteps);
      // Four deviations of the mean of 12,000 draws.
      const double bound = 4.0 * std::sqrt(expected * (1.0 - expected) / (kRuns * kAnswer)) + 1e-9;
      EXPECT_NEAR(clean[static_cast<size_t>(step)] / (kRuns * kAnswer), expected, bound)
          << "schedule " << static_cast<int>(schedule) << " step " << step;
    }
    EXPECT_GT(remasked, kRuns * 10);
  }
}

/// decoding.md §12 for one block, its draws taken from the same places.
std::vector<std::vector<TokenId>> PlainRemdm(const FakeModel& model, const Remdm::Settings& settings, double on,
                                             double off, std::vector<TokenId> tokens) {
  const int32_t steps = settings.steps.steps, first = 3, end = static_cast<int32_t>(tokens.size());
  const double eta = static_cast<double>(settings.eta), held = static_cast<double>(settings.alpha);
  const bool loop = settings.schedule == Schedule::kLoop;
  const auto alpha = [&](double t) {
    if (!loop) return 1.0 - t;
    return t > on ? (1.0 - t) * held / (1.0 - on) : t > off ? held : 1.0 - t * (1.0 - held) / off;
  };
  std::map<int32_t, float> given;
  std::vector<std::vector<TokenId>> canvases;
  for (int32_t step = 0; step < steps; ++step) {
    const double t = 1.0 - static_cast<double>(step) / steps, s = 1.0 - static_cast<double>(step + 1) / steps;
    const double largest = alpha(t) > 0.0 ? std::min(1.0, (1.0 - alpha(s)) / alpha(t)) : 1.0;
    double normalizer = 0.0;
    for (const auto& [p, confidence] : given) normalizer += std::exp(-static_cast<double>(confidence));
    const std::map<int32_t, float> before = given;
    const std::vector<TokenId> seen = tokens;
    for (int32_t p = first; p < end; ++p) {
      const bool masked = seen[static_cast<size_t>(p)] == kMask;
      double sigma = 0.0;
      if (settings.schedule == Schedule::kCap) sigma = std::min(eta, largest);
      if (settings.schedule == Schedule::kRescale) sigma = eta * largest;
      if (loop) sigma = t <= on && t > off ? std::min(eta, largest) : 0.0;
      if (settings.schedule == Schedule::kConfidence && !masked) {
        sigma = largest * std::exp(-static_cast<double>(before.at(p))) / normalizer;
      }
      const DrawPlace place = {settings.sampling.seed, 0, static_cast<uint32_t>(p), static_cast<uint32_t>(step)};
      if (masked) {
        const double write = (alpha(s) - (1.0 - sigma) * alpha(t)) / (1.0 - alpha(t));
        if (step + 1 < steps && UniformDraw(place, 0, DrawPurpose::kTransfer) >= write) continue;
        const RowChoice choice = ChoiceOf(model.Logits(seen, p), -1, {}, settings.sampling, place);
        tokens[static_cast<size_t>(p)] = choice.token;
        given[p] = choice.confidence;
      } else if (step + 1 < steps && UniformDraw(place, 0, DrawPurpose::kRemask) < sigma) {
        tokens[static_cast<size_t>(p)] = kMask;
        given.erase(p);
      }
    }
    canvases.push_back(tokens);
  }
  return canvases;
}

TEST(RemdmTest, DecidesAsThePlainFormulasDo) {
  for (const Schedule schedule : {Schedule::kCap, Schedule::kRescale, Schedule::kConfidence, Schedule::kLoop}) {
    for (uint64_t seed = 1; seed <= 8; ++seed) {
      SCOPED_TRACE(testing::Message() << "schedule " << static_cast<int>(schedule) << " seed " << seed);
      Remdm::Settings settings = SettingsOf(schedule, 17, 0.2f, seed);
      settings.sampling.temperature = seed % 2 == 0 ? 0.9f : 0.0f;
      settings.on = 0.6f;
      settings.off = 0.2f;
      ProcedureRun::Canvas canvas = {3, 24, 24, 3};
      canvas.sampling = settings.sampling;
      const FakeModel model = {seed};
      Remdm remdm(settings);
      ProcedureRun run(remdm, canvas, NetworkOf(model));
      const std::vector<TokenId> tokens = run.tokens();
      EXPECT_EQ(run.RunToEnd(), PlainRemdm(model, settings, static_cast<double>(settings.on),
                                           static_cast<double>(settings.off), tokens));
    }
  }
}

// Every forward is one step of the time, whether masks are left or not.
TEST(RemdmTest, ACleanBlockStaysOpenUntilItsLastStep) {
  const Remdm::Settings settings = SettingsOf(Schedule::kCap, 100, 0.05f, 3);
  Remdm remdm(settings);
  ProcedureRun::Canvas canvas = {3, 4, 4, 3};
  ProcedureRun run(remdm, canvas, Cheap);
  run.RunToEnd();
  EXPECT_EQ(run.forwards(), 100);
}

// A draft's tokens count as sure, whatever stood in their places before.
TEST(RemdmTest, ConfidencesAreOfTheOpenBlockAlone) {
  ProcedureRun::Canvas canvas = {3, 24, 24, 3};
  for (int32_t p = 3; p < 27; p += 2) canvas.draft[p] = 4;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    canvas.sampling.seed = seed;
    Remdm::Settings settings = SettingsOf(Schedule::kConfidence, 30, 0.0f, seed);
    Remdm fresh(settings), used(settings);
    ProcedureRun other(used, {3, 24, 24, 3}, NetworkOf({seed, 0.0f, 0.0f}));
    other.RunToEnd();
    ProcedureRun first(fresh, canvas, NetworkOf({seed})), second(used, canvas, NetworkOf({seed}));
    EXPECT_EQ(second.RunToEnd(), first.RunToEnd());
  }
}

TEST(RemdmTest, StepsAreSharedOutAmongBlocks) {
  Remdm::Settings settings = SettingsOf(Schedule::kCap, 7, 0.05f, 3);
  settings.steps.blocks = 2;
  Remdm remdm(settings);
  ProcedureRun::Canvas canvas = {3, 8, 4, 3};
  ProcedureRun run(remdm, canvas, Cheap);
  run.RunToEnd();
  EXPECT_EQ(run.forwards(), 4 + 3);
}

TEST(RemdmTest, APaceMasksNothingAgain) {
  const Remdm::Settings settings = SettingsOf(Schedule::kRescale, 20, 1.0f, 3);
  Remdm remdm(settings);
  ProcedureRun::Canvas canvas = CanvasOf(settings);
  canvas.commits_min = 50;
  ProcedureRun run(remdm, canvas, Cheap);
  for (int step = 0; step < 4; ++step) {
    run.Step();
    EXPECT_TRUE(run.decision().paced);
  }
  EXPECT_TRUE(run.done());
}

}  // namespace
}  // namespace quicksilver
