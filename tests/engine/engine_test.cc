// Whole groups in one process: real engines on the recorded checkpoints, one thread a rank.
#include "worker/engine/engine.h"

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/cpu_engine.h"
#include "tests/support/engine_group.h"

namespace quicksilver {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::unique_ptr<EngineGroup> Start(const EngineGroup::Options& options) {
  absl::StatusOr<std::unique_ptr<EngineGroup>> group = EngineGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

class EngineFamilyTest : public testing::TestWithParam<const char*> {};

// Same request, same bytes: whatever shares the batch, whenever it came, however its prompt was cut.
TEST_P(EngineFamilyTest, SixteenConcurrentSequencesGiveTheBytesThatEachGivesAlone) {
  const std::vector<v1::Submit> submits = VariedSubmits(std::string(GetParam()) == "llada");
  const std::unique_ptr<EngineGroup> alone = Start(CpuEngineOptions(GetParam(), 1));
  std::vector<std::string> expected;
  size_t tokens = 0;
  for (const v1::Submit& submit : submits) {
    const absl::StatusOr<std::vector<Transcript>> transcripts = alone->RunAll({submit});
    ASSERT_TRUE(transcripts.ok()) << transcripts.status();
    expected.push_back(Bytes((*transcripts)[0]));
    tokens += (*transcripts)[0].answer.size();
  }
  EXPECT_GT(tokens, 100u) << "the answers are worth comparing";
  const int32_t rows_needed = std::string(GetParam()) == "llada" ? 160 : 2 * alone->spec().block_length;
  struct Bounds {
    int32_t rows, sequences, steps_per_launch;
  };
  for (const auto& [rows, sequences, steps] :
       {Bounds{512, 64, 1}, {rows_needed, 16, 1}, {rows_needed + 9, 3, 1}, {512, 64, 8}, {512, 1, 3}}) {
    SCOPED_TRACE(absl::StrCat(rows, " rows, ", sequences, " sequences, ", steps, " steps a launch"));
    EngineGroup::Options options = CpuEngineOptions(GetParam(), 1);
    options.engine.steps_per_launch_max = steps;
    options.engine.step_rows_max = rows;
    options.engine.sequences_max = sequences;
    const std::unique_ptr<EngineGroup> group = Start(options);
    for (size_t i = 0; i < submits.size(); ++i) {
      ASSERT_TRUE(group->Submit(submits[(i * 5) % submits.size()]).ok());
      if (i % 3 == 2) absl::SleepFor(absl::Milliseconds(Philox(rows, i, 0, 0, 0).w[0] % 3));
    }
    for (size_t i = 0; i < submits.size(); ++i) {
      const absl::StatusOr<Transcript> transcript = group->Await(submits[i].sequence_id());
      ASSERT_TRUE(transcript.ok()) << transcript.status();
      EXPECT_EQ(Bytes(*transcript), expected[i]) << "sequence " << submits[i].sequence_id();
    }
    EXPECT_EQ(group->leader().Load().pages_free, group->leader().Load().pages_total);
  }
}

TEST_P(EngineFamilyTest, GroupsOfOneTwoAndFourRanksGiveTheSameTokens) {
  const std::vector<v1::Submit> submits = VariedSubmits(std::string(GetParam()) == "llada");
  std::vector<std::vector<TokenId>> expected;
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(absl::StrCat("tp = ", ranks));
    EngineGroup::Options options = CpuEngineOptions(GetParam(), ranks);
    options.engine.steps_per_launch_max = ranks == 2 ? 6 : 1;
    const std::unique_ptr<EngineGroup> group = Start(options);
    const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll(submits);
    ASSERT_TRUE(transcripts.ok()) << transcripts.status();
    std::vector<std::vector<TokenId>> answers;
    for (const Transcript& transcript : *transcripts) answers.push_back(transcript.answer);
    if (ranks == 1) expected = answers;
    EXPECT_EQ(answers, expected);
    EXPECT_THAT(group->Stop(), Each(absl::OkStatus()));
  }
}

// An answer may also end in a step that commits no stop token: when it fills the last mask before one.
TEST_P(EngineFamilyTest, StopTokensAmidMasksEndAnswersAlikeAtAnyNumberOfStepsALaunch) {
  std::vector<v1::Submit> submits = VariedSubmits(std::string(GetParam()) == "llada");
  for (v1::Submit& submit : submits) {
    submit.clear_stop_ids();
    for (TokenId id = static_cast<TokenId>(submit.sequence_id() % 3); id < 248; id += 3) submit.add_stop_ids(id);
    submit.mutable_decoding()->set_policy(v1::POLICY_STATIC);
    submit.mutable_decoding()->clear_threshold();
  }
  std::vector<std::string> expected;
  for (const int32_t steps : {1, 2, 8}) {
    SCOPED_TRACE(absl::StrCat(steps, " steps a launch"));
    EngineGroup::Options options = CpuEngineOptions(GetParam(), 1);
    options.engine.steps_per_launch_max = steps;
    const std::unique_ptr<EngineGroup> group = Start(options);
    size_t i = 0;
    for (const v1::Submit& submit : submits) {
      const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll({submit});
      ASSERT_TRUE(transcripts.ok()) << transcripts.status();
      if (steps == 1) expected.push_back(Bytes((*transcripts)[0]));
      EXPECT_EQ(Bytes((*transcripts)[0]), expected[i++]) << "sequence " << submit.sequence_id();
    }
    EXPECT_THAT(group->Stop(), Each(absl::OkStatus()));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, EngineFamilyTest, testing::Values("sdar", "llada", "demo"),
                         [](const testing::TestParamInfo<const char*>& of) { return std::string(of.param); });

TEST(EngineTest, SeedAndChoiceDecideASampledAnswer) {
  const std::unique_ptr<EngineGroup> group = Start(CpuEngineOptions("sdar", 1));
  std::vector<v1::Submit> submits;
  for (const auto& [seed, choice] : std::vector<std::pair<uint64_t, uint32_t>>{{1, 0}, {1, 0}, {2, 0}, {1, 1}}) {
    v1::Submit submit = MakeSubmit(submits.size() + 1, {3, 1, 4, 1, 5}, 32);
    submit.mutable_sampling()->set_temperature(1.5f);
    submit.mutable_sampling()->set_seed(seed);
    submit.set_choice(choice);
    submits.push_back(submit);
  }
  const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll(submits);
  ASSERT_TRUE(transcripts.ok()) << transcripts.status();
  EXPECT_EQ((*transcripts)[0].answer, (*transcripts)[1].answer);
  EXPECT_NE((*transcripts)[0].answer, (*transcripts)[2].answer);
  EXPECT_NE((*transcripts)[0].answer, (*transcripts)[3].answer);
}

TEST(EngineTest, WithoutProvisionalOnlyFinalTokensAreReportedAndInOrder) {
  const std::unique_ptr<EngineGroup> group = Start(CpuEngineOptions("sdar", 1));
  v1::Submit shown = MakeSubmit(1, {3, 1, 4, 1, 5, 9}, 21);
  v1::Submit quiet = shown;
  quiet.set_sequence_id(2);
  quiet.set_provisional(false);
  const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll({shown, quiet});
  ASSERT_TRUE(transcripts.ok()) << transcripts.status();
  EXPECT_EQ((*transcripts)[0].answer, (*transcripts)[1].answer);
  EXPECT_EQ((*transcripts)[1].answer.size(), 21u);
  uint32_t next = 6, border = 6;
  for (const v1::SequenceUpdate& update : (*transcripts)[1].updates) {
    EXPECT_GT(update.final_before(), border);
    border = update.final_before();
    for (const v1::Commit& commit : update.commits()) {
      EXPECT_EQ(commit.position(), next++) << "each position once, ascending";
      EXPECT_LT(commit.position(), border);
    }
  }
  EXPECT_LT((*transcripts)[1].updates.size(), (*transcripts)[0].updates.size());
  const v1::SequenceEnd& end = (*transcripts)[1].end;
  EXPECT_EQ(end.reason(), v1::SequenceEnd::REASON_LENGTH);
  EXPECT_EQ(end.completion_tokens(), 21u);
  EXPECT_EQ(end.forwards(), (*transcripts)[0].updates.size()) << "one update a forward when provisional";
  EXPECT_GE(end.queue_seconds(), 0.0);
  EXPECT_GT(end.decode_seconds(), 0.0);
}

TEST(EngineTest, CancelEndsASequenceAndFreesItsPages) {
  const std::unique_ptr<EngineGroup> group = Start(CpuEngineOptions("sdar", 2));
  ASSERT_TRUE(group->Submit(MakeSubmit(1, {1, 2, 3}, 3000)).ok());
  while (group->Look(1).updates.empty()) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_LT(group->leader().Load().pages_free, group->leader().Load().pages_total);
  group->leader().Cancel(1, 1);
  const absl::StatusOr<Transcript> transcript = group->Await(1);
  ASSERT_TRUE(transcript.ok()) << transcript.status();
  EXPECT_EQ(transcript->end.reason(), v1::SequenceEnd::REASON_CANCELLED);
  EXPECT_LT(transcript->end.completion_tokens(), 3000u);
  while (group->leader().Load().running > 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(group->leader().Load().pages_free, group->leader().Load().pages_total);
  group->leader().Cancel(1, 1);  // Of an ended sequence: nothing happens.
  ASSERT_TRUE(group->Submit(MakeSubmit(2, {1, 2, 3}, 4)).ok());
  EXPECT_TRUE(group->Await(2).ok());
  EXPECT_THAT(group->Stop(), Each(absl::OkStatus()));
}

TEST(EngineTest, ACancelRightBehindItsSubmissionIsNotLost) {
  const std::unique_ptr<EngineGroup> group = Start(CpuEngineOptions("sdar", 1));
  for (uint64_t id = 1; id <= 20; ++id) {
    ASSERT_TRUE(group->Submit(MakeSubmit(id, {1, 2, 3}, 3000)).ok());
    group->leader().Cancel(1, id);
  }
  for (uint64_t id = 1; id <= 20; ++id) {
    const absl::StatusOr<Transcript> transcript = group->Await(id);
    ASSERT_TRUE(transcript.ok()) << transcript.status();
    EXPECT_EQ(transcript->end.reason(), v1::SequenceEnd::REASON_CANCELLED);
  }
}

TEST(EngineTest, ABrokenStreamLosesItsSequencesAndNoOther) {
  const std::unique_ptr<EngineGroup> group = Start(CpuEngineOptions("sdar", 1));
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_TRUE(group->Submit(MakeSubmit(id, {1, 2}, 3000), /*stream=*/7).ok());
  ASSERT_TRUE(group->Submit(MakeSubmit(1, {1, 2}, 60), /*stream=*/8).ok());
  while (group->Look(1, 7).updates.empty()) absl::SleepFor(absl::Milliseconds(1));
  group->leader().CancelStream(7);
  const absl::StatusOr<Transcript> other = group->Await(1, 8);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->end.reason(), v1::SequenceEnd::REASON_LENGTH);
  EXPECT_FALSE(group->Look(1, 7).ended) << "nothing more goes to a broken stream";
  while (group->leader().Load().running > 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(group->leader().Load().pages_free, group->leader().Load().pages_total);
}

TEST(EngineTest, MoreThanTheWaitingBoundIsRefused) {
  EngineGroup::Options options = CpuEngineOptions("sdar", 1);
  options.engine.sequences_max = 1;
  options.engine.waiting_max = 2;
  const std::unique_ptr<EngineGroup> group = Start(options);
  ASSERT_TRUE(group->Submit(MakeSubmit(1, {1, 2}, 3000)).ok());
  while (group->leader().Load().running == 0) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_TRUE(group->Submit(MakeSubmit(2, {1, 2}, 4)).ok());
  EXPECT_TRUE(group->Submit(MakeSubmit(3, {1, 2}, 4)).ok());
  const absl::Status refused = group->Submit(MakeSubmit(4, {1, 2}, 4));
  EXPECT_EQ(refused, absl::ResourceExhaustedError("sequences waiting (2) are at most 2"));
  EXPECT_EQ(group->leader().Load().waiting, 2u);
  group->leader().Cancel(1, 1);
  EXPECT_TRUE(group->Await(2).ok());
  EXPECT_TRUE(group->Await(3).ok());
  EXPECT_TRUE(group->Submit(MakeSubmit(4, {1, 2}, 4)).ok());
}

TEST(EngineTest, WhatCanNeverRunIsRefusedAtOnce) {
  EngineGroup::Options options = CpuEngineOptions("llada", 1);
  options.engine.step_rows_max = 64;
  const std::unique_ptr<EngineGroup> group = Start(options);
  EXPECT_EQ(group->Submit(MakeSubmit(1, {1, 2}, 63)),
            absl::InvalidArgumentError("prompt_ids (2) and max_tokens (63) need 66 rows in one step, at most 64"));
  EXPECT_EQ(group->Submit(MakeSubmit(1, {1, 250}, 8)),
            absl::InvalidArgumentError("prompt_ids[1] (250) must be another id than the mask token's"));
  ASSERT_TRUE(group->Submit(MakeSubmit(1, {1, 2}, 62)).ok());
  EXPECT_EQ(group->Submit(MakeSubmit(1, {1, 2}, 8)), absl::InvalidArgumentError("sequence_id (1) is in use"));
}

TEST(EngineTest, RanksThatDecideDifferentlyStopTheGroup) {
  EngineGroup::Options options = CpuEngineOptions("sdar", 2);
  options.vary = [](int rank, EngineOptions& engine) { engine.step_rows_max = rank == 0 ? 64 : 32; };
  const std::unique_ptr<EngineGroup> group = Start(options);
  ASSERT_TRUE(group->Submit(MakeSubmit(1, std::vector<TokenId>(60, 7), 64)).ok());
  const std::vector<absl::Status> statuses = group->Join();
  EXPECT_TRUE(std::any_of(statuses.begin(), statuses.end(),
                          [](const absl::Status& status) {
                            return absl::IsInternal(status) &&
                                   status.message().find("ranks disagree") != absl::string_view::npos;
                          }))
      << statuses[0] << statuses[1];
  EXPECT_TRUE(absl::IsUnavailable(group->Submit(MakeSubmit(2, {1}, 1))));
}

TEST(EngineTest, ALostRankEndsEveryEngineWithUnavailable) {
  const std::unique_ptr<EngineGroup> group = Start(CpuEngineOptions("sdar", 2));
  ASSERT_TRUE(group->Submit(MakeSubmit(1, {1, 2}, 3000)).ok());
  while (group->Look(1).updates.empty()) absl::SleepFor(absl::Milliseconds(1));
  group->Break();
  for (const absl::Status& status : group->Join()) EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

TEST(EngineTest, AnIdleGroupBeatsAndStaysAlive) {
  EngineGroup::Options options = CpuEngineOptions("sdar", 2);
  options.engine.idle_beat = absl::Milliseconds(50);
  options.engine.peer_timeout = absl::Milliseconds(400);
  const std::unique_ptr<EngineGroup> group = Start(options);
  absl::SleepFor(absl::Milliseconds(900));
  const absl::StatusOr<std::vector<Transcript>> transcripts = group->RunAll({MakeSubmit(1, {1, 2}, 8)});
  EXPECT_TRUE(transcripts.ok()) << transcripts.status();
  EXPECT_THAT(group->Stop(), Each(absl::OkStatus()));
}

TEST(EngineTest, AFollowerLeavesASilentLeader) {
  EngineGroup::Options options = CpuEngineOptions("sdar", 2);
  options.engine.idle_beat = absl::Seconds(30);
  options.engine.peer_timeout = absl::Milliseconds(200);
  const std::unique_ptr<EngineGroup> group = Start(options);
  const absl::Duration began = MonotonicNow();
  while (group->failures() == 0 && MonotonicNow() < began + absl::Seconds(20)) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_LT(MonotonicNow() - began, absl::Seconds(10));
  const std::vector<absl::Status> statuses = group->Stop();
  EXPECT_TRUE(absl::IsUnavailable(statuses[1])) << statuses[1];
}

TEST(EngineTest, ShutdownEndsEveryRankAndRefusesWhatComesLater) {
  const std::unique_ptr<EngineGroup> group = Start(CpuEngineOptions("sdar", 2));
  ASSERT_TRUE(group->Submit(MakeSubmit(1, {1, 2}, 3000)).ok());
  EXPECT_THAT(group->Stop(), Each(absl::OkStatus()));
  EXPECT_TRUE(absl::IsUnavailable(group->Submit(MakeSubmit(2, {1, 2}, 8))));
}

}  // namespace
}  // namespace quicksilver
