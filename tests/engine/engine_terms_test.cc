// What a request asks for besides its answer: deadlines, targets and a place among others.
#include <algorithm>
#include <latch>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"

namespace quicksilver {
namespace {

EngineGroup::Options DemoOptions(int ranks) {
  EngineGroup::Options options;
  options.directory = QUICKSILVER_ROOT "/models/demo";
  options.ranks = ranks;
  options.make_ops = [] { return MakeCpuOps(DType::kF32, CpuOpsOptions()); };
  return options;
}

std::unique_ptr<EngineGroup> Start(const EngineGroup::Options& options) {
  absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

/// One token a step, left to right, and never a stop token.
v1::Submit Slow(uint64_t id, uint32_t max_tokens) {
  v1::Submit submit = MakeSubmit(id, {40, 41, 42, 43, 44}, max_tokens);
  submit.mutable_decoding()->set_policy(v1::POLICY_SEQUENTIAL);
  return submit;
}

TEST(EngineTermsTest, ADeadlineEndsARunningSequenceWithTheTokensBeforeItsFirstMask) {
  for (const int ranks : {1, 2}) {
    for (const bool provisional : {true, false}) {
      SCOPED_TRACE(absl::StrCat("tp = ", ranks, provisional ? ", provisional" : ""));
      const std::unique_ptr<EngineGroup> group = Start(DemoOptions(ranks));
      v1::Submit submit = Slow(1, 480);
      submit.set_provisional(provisional);
      const absl::StatusOr<std::vector<Transcript>> whole = group->RunAll({submit});
      ASSERT_TRUE(whole.ok()) << whole.status();
      submit.set_sequence_id(2);
      submit.set_deadline_micros(10'000);
      const absl::StatusOr<std::vector<Transcript>> cut = group->RunAll({submit});
      ASSERT_TRUE(cut.ok()) << cut.status();
      const Transcript& found = (*cut)[0];
      ASSERT_EQ(found.end.reason(), v1::SequenceEnd::REASON_DEADLINE);
      EXPECT_EQ(found.end.completion_tokens(), found.answer.size());
      EXPECT_EQ(found.answer.size(), found.end.forwards()) << "left to right: every token is before the first mask";
      EXPECT_LT(found.answer.size(), 480u);
      EXPECT_TRUE(std::equal(found.answer.begin(), found.answer.end(), (*whole)[0].answer.begin()));
      EXPECT_EQ(group->leader().Load().pages_free, group->leader().Load().pages_total);
    }
  }
}

TEST(EngineTermsTest, ADeadlineAlsoEndsWhatHasNotStarted) {
  EngineGroup::Options options = DemoOptions(2);
  options.engine.sequences_max = 1;
  const std::unique_ptr<EngineGroup> group = Start(options);
  ASSERT_TRUE(group->Submit(Slow(1, 200)).ok());
  v1::Submit late = Slow(2, 200);
  late.set_deadline_micros(1);
  ASSERT_TRUE(group->Submit(late).ok());
  v1::Submit resumed = Slow(3, 200);
  resumed.set_deadline_micros(1);
  resumed.mutable_checkpoint()->set_step(2);
  resumed.mutable_checkpoint()->set_block_step(2);
  resumed.mutable_checkpoint()->set_final_before(5);
  resumed.mutable_checkpoint()->add_tokens(50);
  resumed.mutable_checkpoint()->add_tokens(51);
  ASSERT_TRUE(group->Submit(resumed).ok());
  const absl::StatusOr<Transcript> nothing = group->Await(2), something = group->Await(3);
  ASSERT_TRUE(nothing.ok() && something.ok());
  EXPECT_EQ(nothing->end.reason(), v1::SequenceEnd::REASON_DEADLINE);
  EXPECT_EQ(nothing->end.completion_tokens(), 0u);
  EXPECT_EQ(nothing->end.forwards(), 0u);
  EXPECT_EQ(something->end.reason(), v1::SequenceEnd::REASON_DEADLINE);
  EXPECT_EQ(something->end.completion_tokens(), 2u) << "what the checkpoint has before its first mask";
  EXPECT_EQ(something->end.forwards(), 2u);
  const absl::StatusOr<Transcript> other = group->Await(1);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->end.reason(), v1::SequenceEnd::REASON_LENGTH) << "the others go on";
}

// Whatever the machine, a hundredth of the time that one token a step takes leaves no time for that.
class EnginePaceTest : public testing::TestWithParam<int32_t> {};

TEST_P(EnginePaceTest, ATargetIsMetWithMoreTokensAStep) {
  constexpr uint32_t kTokens = 400;
  EngineGroup::Options options = DemoOptions(2);
  options.engine.steps_per_launch_max = GetParam();
  const std::unique_ptr<EngineGroup> group = Start(options);
  const absl::StatusOr<std::vector<Transcript>> plain = group->RunAll({Slow(1, kTokens)});
  ASSERT_TRUE(plain.ok()) << plain.status();
  const uint32_t forwards = (*plain)[0].end.forwards();
  EXPECT_GE(forwards, kTokens);
  EXPECT_EQ((*plain)[0].end.paced_steps(), 0u);
  v1::Submit submit = Slow(2, kTokens);
  const double seconds = (*plain)[0].end.decode_seconds() / 100;
  submit.set_target_micros(static_cast<uint64_t>(seconds * 1e6));
  const absl::StatusOr<std::vector<Transcript>> paced = group->RunAll({submit});
  ASSERT_TRUE(paced.ok()) << paced.status();
  const v1::SequenceEnd& end = (*paced)[0].end;
  EXPECT_LT(end.forwards(), forwards);
  EXPECT_GT(end.paced_steps(), 0u);
  EXPECT_LE(end.paced_steps(), end.forwards());
  if (end.reason() == v1::SequenceEnd::REASON_LENGTH) {
    EXPECT_EQ(end.completion_tokens(), kTokens);
  } else {
    EXPECT_EQ(end.reason(), v1::SequenceEnd::REASON_DEADLINE) << "the machine has stalled: the best so far";
  }
  EXPECT_THAT(group->Stop(), testing::Each(absl::OkStatus())) << "ranks took the same pace";
}

INSTANTIATE_TEST_SUITE_P(StepsALaunch, EnginePaceTest, testing::Values(1, 4));

TEST(EngineTermsTest, ATargetThatNeedsNoHurryChangesNothing) {
  const std::unique_ptr<EngineGroup> group = Start(DemoOptions(1));
  v1::Submit submit = Slow(1, 60);
  const absl::StatusOr<std::vector<Transcript>> plain = group->RunAll({submit});
  submit.set_sequence_id(2);
  submit.set_target_micros(600'000'000);
  const absl::StatusOr<std::vector<Transcript>> relaxed = group->RunAll({submit});
  ASSERT_TRUE(plain.ok() && relaxed.ok());
  EXPECT_EQ(Bytes((*relaxed)[0]), Bytes((*plain)[0]));
}

TEST(EngineTermsTest, OneCoordinatorCannotFillTheWaitingRoom) {
  EngineGroup::Options options = DemoOptions(1);
  options.engine.sequences_max = 1;
  options.engine.waiting_max = 6;
  std::latch runs(1), go_on(1);
  options.on_report = [&](const v1::StepResult&) {
    if (!runs.try_wait()) runs.count_down();
    go_on.wait();
  };
  const std::unique_ptr<EngineGroup> group = Start(options);
  ASSERT_TRUE(group->Submit(Slow(1, 480), /*stream=*/7, /*streams=*/2).ok());
  runs.wait();
  for (uint64_t id = 2; id <= 4; ++id) EXPECT_TRUE(group->Submit(Slow(id, 4), 7, 2).ok());
  EXPECT_EQ(group->Submit(Slow(5, 4), 7, 2),
            absl::ResourceExhaustedError("sequences waiting (3) are at most 3, its part of 6"));
  for (uint64_t id = 1; id <= 3; ++id) EXPECT_TRUE(group->Submit(Slow(id, 4), 8, 2).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(group->Submit(Slow(4, 4), 8, 2)));
  EXPECT_EQ(group->leader().Load().waiting, 6u);
  group->leader().CancelStream(7);
  go_on.count_down();
  for (uint64_t id = 1; id <= 3; ++id) EXPECT_TRUE(group->Await(id, 8).ok());
  EXPECT_TRUE(group->Submit(Slow(5, 4), 8, 1).ok()) << "what has started or ended counts no more";
  EXPECT_TRUE(group->Await(5, 8).ok());
}

}  // namespace
}  // namespace quicksilver
