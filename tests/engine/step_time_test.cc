#include "worker/engine/step_time.h"

#include "common/philox.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

absl::Duration Cost(int32_t rows) { return absl::Milliseconds(2) + rows * absl::Microseconds(50); }

TEST(StepTimeModelTest, TheFirstStepsPrefillAnEighthOfAStep) {
  EXPECT_EQ(StepTimeModel(4, 512).PrefillRows(absl::Milliseconds(1), 100), 64);
  EXPECT_EQ(StepTimeModel(32, 64).PrefillRows(absl::Milliseconds(1), 0), 32);
}

TEST(StepTimeModelTest, FindsTheFixedCostAndTheCostOfARow) {
  StepTimeModel model(4, 512);
  for (int i = 0; i < 200; ++i) {
    const int32_t denoise = 32, prefill = static_cast<int32_t>(Philox(1, i, 0, 0, 0).w[0] % 300);
    model.Observe(denoise, prefill, Cost(denoise + prefill));
  }
  EXPECT_NEAR(absl::ToDoubleMilliseconds(model.Expected(32)), 3.6, 0.2);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(model.Expected(400)), 22.0, 0.5);
  EXPECT_NEAR(model.PrefillRows(absl::Milliseconds(12), 100), 100, 8) << "(12 - 2) ms / 50 us - 100";
}

TEST(StepTimeModelTest, AnswersStayWithinABlockAndAStep) {
  StepTimeModel model(4, 512);
  model.Observe(100, 100, Cost(200));
  EXPECT_EQ(model.PrefillRows(absl::ZeroDuration(), 0), 4);
  EXPECT_EQ(model.PrefillRows(absl::Milliseconds(1), 400), 4);
  EXPECT_EQ(model.PrefillRows(absl::Hours(1), 0), 512);
}

// Then the slope cannot be told from the fixed cost: rows are taken to cost in proportion.
TEST(StepTimeModelTest, StepsOfNearlyEqualRowsAreNoReasonForWildAnswers) {
  StepTimeModel model(4, 512);
  for (int i = 0; i < 100; ++i) model.Observe(100 + i % 2, 0, absl::Milliseconds(10) - i % 2 * absl::Microseconds(3));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(model.Expected(200)), 20.0, 0.2);
  EXPECT_NEAR(model.PrefillRows(absl::Milliseconds(15), 100), 50, 2);
}

TEST(StepTimeModelTest, OneSlowStepMovesLittleAndASlowerMachineIsFollowed) {
  StepTimeModel model(4, 512);
  const auto run = [&](int steps, double slowness) {
    for (int i = 0; i < steps; ++i) model.Observe(0, 50 + i * 37 % 300, slowness * Cost(50 + i * 37 % 300));
  };
  run(300, 1.0);
  const double before = absl::ToDoubleMilliseconds(model.Expected(200));
  model.Observe(0, 200, absl::Seconds(10));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(model.Expected(200)), before, 0.05 * before);
  run(600, 3.0);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(model.Expected(200)), 3.0 * before, 0.1 * before);
}

TEST(StepTimeModelTest, EmptyStepsAndClocksThatStandStillDoNoHarm) {
  StepTimeModel model(4, 512);
  model.Observe(0, 0, absl::Seconds(1));
  EXPECT_EQ(model.Expected(100), absl::ZeroDuration());
  for (int i = 0; i < 10; ++i) model.Observe(100, 0, absl::ZeroDuration());
  EXPECT_EQ(model.PrefillRows(absl::Milliseconds(1), 0), 512);
}

}  // namespace
}  // namespace quicksilver
