#include "worker/engine/step_clock.h"

#include "gtest/gtest.h"

namespace quicksilver {
namespace {

TEST(StepClockTest, TellsSinceWhenAStepIsUnderWay) {
  StepClock clock;
  EXPECT_EQ(clock.Read().since, absl::InfiniteDuration());
  clock.Begin(absl::Seconds(10), absl::ZeroDuration());
  EXPECT_EQ(clock.Read().since, absl::Seconds(10));
  EXPECT_EQ(clock.Lap(absl::Seconds(12)), absl::Seconds(2));
  EXPECT_EQ(clock.Read().since, absl::Seconds(12)) << "the next step of the launch";
  clock.End();
  EXPECT_EQ(clock.Read().since, absl::InfiniteDuration());
}

TEST(StepClockTest, TheMeanFollowsTheNewestSteps) {
  StepClock clock;
  absl::Duration now;
  const auto step = [&](absl::Duration took) {
    clock.Begin(now, absl::ZeroDuration());
    clock.Lap(now += took);
  };
  step(absl::Milliseconds(10));
  EXPECT_EQ(clock.Read().mean, absl::Milliseconds(10));
  for (int i = 0; i < 200; ++i) step(absl::Milliseconds(30));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(clock.Read().mean), 30.0, 0.1);
}

TEST(StepClockTest, ASlowStepInAHundredSetsTheDeadlineUntilItIsForgotten) {
  StepClock clock;
  EXPECT_EQ(StepDeadline(clock.Read()), absl::Minutes(2)) << "nothing to compare with";
  absl::Duration now;
  clock.Begin(now, absl::ZeroDuration());
  for (int i = 0; i < 100; ++i) clock.Lap(now += absl::Milliseconds(10));
  EXPECT_EQ(StepDeadline(clock.Read()), absl::Seconds(5));
  for (int i = 0; i < 3; ++i) clock.Lap(now += absl::Seconds(1));
  EXPECT_EQ(clock.Read().p99, absl::Seconds(1));
  EXPECT_EQ(StepDeadline(clock.Read()), absl::Seconds(20));
  for (int i = 0; i < 256; ++i) clock.Lap(now += absl::Milliseconds(10));
  EXPECT_EQ(StepDeadline(clock.Read()), absl::Seconds(5));
}

// A device may try algorithms out for a shape that it meets for the first time.
TEST(StepClockTest, WhatIsStillBeingMadeReadyMayTakeAsLongAsAFirstStepAndCountsForNoMeasure) {
  StepClock clock;
  clock.Begin(absl::ZeroDuration(), absl::ZeroDuration());
  clock.Lap(absl::Milliseconds(10));
  clock.Prepare(absl::Seconds(1));
  EXPECT_EQ(clock.Read().since, absl::Seconds(1));
  EXPECT_EQ(StepDeadline(clock.Read()), absl::Minutes(2));
  clock.Begin(absl::Seconds(41), absl::ZeroDuration());
  EXPECT_EQ(StepDeadline(clock.Read()), absl::Seconds(5));
  EXPECT_EQ(clock.Lap(absl::Seconds(41) + absl::Milliseconds(10)), absl::Milliseconds(10));
  EXPECT_EQ(clock.Read().p99, absl::Milliseconds(10));
}

// A long prompt after many small steps is no hang.
TEST(StepClockTest, AStepThatIsExpectedToTakeLongMay) {
  StepClock clock;
  clock.Begin(absl::ZeroDuration(), absl::ZeroDuration());
  clock.Lap(absl::Milliseconds(10));
  clock.Begin(absl::Seconds(1), absl::Seconds(3));
  EXPECT_EQ(StepDeadline(clock.Read()), absl::Minutes(1));
}

constexpr absl::Duration kLook = absl::Milliseconds(250);

// Looks every kLook from `from` to `to`; whether the step ever took longer than it may.
bool Hangs(StepPatience& patience, const StepClock& clock, absl::Duration from, absl::Duration to) {
  bool hangs = false;
  for (absl::Duration now = from; now <= to; now += kLook) {
    const absl::Duration limit = patience.Limit(clock.Read(), now);
    hangs = hangs || now - clock.Read().since > limit;
  }
  return hangs;
}

TEST(StepPatienceTest, AStepThatHangsIsSeenAfterItsDeadline) {
  StepClock clock;
  clock.Begin(absl::ZeroDuration(), absl::ZeroDuration());
  clock.Lap(absl::Milliseconds(10));
  StepPatience patience(kLook);
  EXPECT_FALSE(Hangs(patience, clock, absl::ZeroDuration(), absl::Seconds(5)));
  EXPECT_TRUE(Hangs(patience, clock, absl::Seconds(5) + kLook, absl::Seconds(6)));
}

TEST(StepPatienceTest, AProcessThatWasStoppedAmidAStepHasNotHungUntilTheDeadlineIsUsedUp) {
  StepClock clock;
  clock.Begin(absl::ZeroDuration(), absl::ZeroDuration());
  clock.Lap(absl::Milliseconds(10));
  StepPatience patience(kLook);
  EXPECT_FALSE(Hangs(patience, clock, absl::ZeroDuration(), absl::Seconds(1)));
  // Stopped for an hour, twice.
  EXPECT_FALSE(Hangs(patience, clock, absl::Hours(1) + absl::Seconds(1), absl::Hours(1) + absl::Seconds(3)));
  EXPECT_FALSE(Hangs(patience, clock, absl::Hours(2) + absl::Seconds(3), absl::Hours(2) + absl::Seconds(5)));
  EXPECT_TRUE(Hangs(patience, clock, absl::Hours(2) + absl::Seconds(5), absl::Hours(2) + absl::Seconds(6)));
}

TEST(StepPatienceTest, AStopExcusesOnlyTheStepInWhichItFell) {
  StepClock clock;
  clock.Begin(absl::ZeroDuration(), absl::ZeroDuration());
  clock.Lap(absl::Milliseconds(10));
  StepPatience patience(kLook);
  EXPECT_FALSE(Hangs(patience, clock, absl::ZeroDuration(), absl::Seconds(1)));
  EXPECT_FALSE(Hangs(patience, clock, absl::Minutes(1), absl::Minutes(1) + absl::Seconds(1)));
  clock.Begin(absl::Minutes(1) + absl::Seconds(1), absl::ZeroDuration());
  EXPECT_TRUE(Hangs(patience, clock, absl::Minutes(1) + absl::Seconds(1), absl::Minutes(1) + absl::Seconds(7)));
  // Before the step of which it is asked nothing was missed, either.
  clock.Begin(absl::Minutes(3), absl::ZeroDuration());
  EXPECT_TRUE(Hangs(patience, clock, absl::Minutes(3) + kLook, absl::Minutes(3) + absl::Seconds(6)));
}

}  // namespace
}  // namespace quicksilver
