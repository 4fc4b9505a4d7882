#include "worker/engine/scheduler.h"

#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/scheduler_story.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(SchedulerTest, SequencesStartInOrderUpToTheirNumber) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 64, .pages = 100, .page_size = 8});
  for (int i = 0; i < 3; ++i) story.Add(BlockCausal(4, 40));
  EXPECT_EQ(story.scheduler.waiting(), 3);
  EXPECT_THAT(story.Step(), ElementsAre(1, 2));
  EXPECT_EQ(story.scheduler.running(), 2);
  EXPECT_EQ(story.scheduler.waiting(), 1);
  EXPECT_TRUE(story.scheduler.Remove(1));
  EXPECT_THAT(story.Step(), ElementsAre(2, 3));
}

TEST(SchedulerTest, WaitingAndRunningSequencesCanBeRemoved) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 64, .pages = 10, .page_size = 8});
  story.Add(BlockCausal(4, 4));
  story.Add(BlockCausal(4, 4));
  story.Plan();
  EXPECT_NE(story.scheduler.Find(2), nullptr);
  EXPECT_TRUE(story.scheduler.Remove(2));
  EXPECT_EQ(story.scheduler.Find(2), nullptr);
  EXPECT_TRUE(story.scheduler.Remove(1));
  EXPECT_FALSE(story.scheduler.Remove(1));
  EXPECT_EQ(story.scheduler.pages_free(), 10);
  EXPECT_THAT(story.Plan(), IsEmpty());
}

// No head-of-line blocking: a long prompt is prefilled beside the others' steps.
TEST(SchedulerTest, ALongPromptLeavesEveryDenoisingSequenceItsStep) {
  SchedulerStory story({.sequences_max = 8, .step_rows_max = 32, .pages = 200, .page_size = 8});
  for (int i = 0; i < 2; ++i) story.Add(BlockCausal(4, 200));
  story.Step();
  story.Add(BlockCausal(400, 4));
  int steps = 0;
  for (bool prefilling = true; prefilling; ++steps) {
    const std::vector<PlannedSegment> plan = story.Plan();
    ASSERT_THAT(Ids(plan), ElementsAre(1, 2, 3));
    EXPECT_TRUE(plan[0].segment.denoise && plan[1].segment.denoise);
    EXPECT_LE(Rows(plan), 32);
    prefilling = !plan[2].segment.denoise;
    EXPECT_TRUE(!prefilling || plan[2].segment.rows >= 16) << "what the others leave goes to the prompt";
    Finish(story.scheduler, plan);
  }
  EXPECT_LT(steps, 30);
}

// Nor the other way round: full blocks do not keep a prompt from its first token.
TEST(SchedulerTest, ManyDenoisingSequencesLeaveAPromptItsShare) {
  SchedulerStory story({.sequences_max = 16, .step_rows_max = 32, .pages = 400, .page_size = 8});
  for (int i = 0; i < 10; ++i) story.Add(BlockCausal(4, 200));
  for (int i = 0; i < 4; ++i) story.Step();
  const uint64_t prompt = story.Add(BlockCausal(64, 4));
  int steps = 0;
  for (bool denoised = false; !denoised; ++steps) {
    ASSERT_LT(steps, 40);
    const std::vector<PlannedSegment> plan = story.Plan();
    for (const PlannedSegment& planned : plan) denoised |= planned.running->id == prompt && planned.segment.denoise;
    EXPECT_LE(Rows(plan), 32);
    Finish(story.scheduler, plan);
  }
}

TEST(SchedulerTest, APromptOfABetterClassNeedNotMakeDoWithItsShare) {
  for (const int32_t priority : {0, 2}) {
    SchedulerStory story({.sequences_max = 24, .step_rows_max = 64, .pages = 400, .page_size = 8});
    for (int i = 0; i < 20; ++i) story.Add(BlockCausal(0, 200), {.priority = 2});
    story.Step();
    const uint64_t prompt = story.Add(BlockCausal(48, 4), {.priority = priority});
    const std::vector<PlannedSegment> plan = story.Plan();
    ASSERT_EQ(plan.back().running->id, prompt);
    EXPECT_EQ(plan.back().segment.rows, priority == 0 ? 52 : 8);
    EXPECT_EQ(Rows(plan), 64);
  }
}

// A step that has room for one block with the one before it, which the first one always wants, and no more.
TEST(SchedulerTest, WhereAStepHoldsOneSequencePrefillAndDenoisingTakeTurns) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 2 * kBlock, .pages = 400, .page_size = 8});
  SequenceSpec block_a_step = BlockCausal(4, 400).spec();
  block_a_step.decoding.steps = 1;
  const uint64_t denoises = story.Add(Sequence(block_a_step), {.deadline = absl::Seconds(1)});
  story.Step();
  const uint64_t prefills = story.Add(BlockCausal(40, 4));
  int steps = 0;
  for (; story.scheduler.Find(prefills)->sequence.prefill_rows() > 0; ++steps) {
    ASSERT_LT(steps, 30);
    story.Step();
  }
  EXPECT_EQ(story.scheduler.Find(denoises)->sequence.forwards(), 1 + steps / 2);
}

TEST(SchedulerTest, PrefillBesideDenoisingKeepsToItsBudget) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 512, .pages = 400, .page_size = 8});
  story.Add(BlockCausal(4, 100));
  story.Step();
  story.Add(BlockCausal(400, 4));
  story.Add(BlockCausal(400, 4));
  for (const int32_t budget : {0, 1, 40, 41, 64}) {
    story.prefill_rows_max = budget;
    const std::vector<PlannedSegment> plan = story.Plan();
    int32_t prefill = 0;
    for (const auto& [running, segment] : plan) prefill += segment.denoise ? 0 : segment.rows;
    EXPECT_EQ(prefill, std::max(kBlock, budget / kBlock * kBlock)) << "at least a block, and whole ones";
    EXPECT_EQ(plan[0].running->id, 1u);
    Finish(story.scheduler, plan);
  }
}

// The rows of the block before ride in front: the cache is kept up without a step of its own.
TEST(SchedulerTest, AClosedBlocksRowsRideInFrontOfTheNextBlock) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 512, .pages = 400, .page_size = 8});
  story.Add(BlockCausal(8, 12));
  for (int step = 0; step < 12; ++step) {
    const std::vector<PlannedSegment> plan = story.Plan();
    ASSERT_EQ(plan.size(), 1u);
    EXPECT_TRUE(plan[0].segment.denoise);
    EXPECT_EQ(plan[0].segment.rows, step == 0 ? 12 : step % kBlock == 0 ? 2 * kBlock : kBlock) << step;
    Finish(story.scheduler, plan);
  }
}

TEST(SchedulerTest, WhenRowsAreShortEverySequenceGetsItsTurn) {
  SchedulerStory story({.sequences_max = 16, .step_rows_max = 40, .pages = 400, .page_size = 8});
  for (int i = 0; i < 6; ++i) story.Add(Bidirectional(8, 8, 0.0f));  // 16 rows each: 2 a step.
  std::map<uint64_t, int> turns;
  for (int step = 0; step < 6; ++step) {
    const std::vector<uint64_t> ids = story.Step();
    EXPECT_EQ(ids.size(), 2u);
    for (const uint64_t id : ids) ++turns[id];
  }
  for (uint64_t id = 1; id <= 6; ++id) EXPECT_EQ(turns[id], 2) << id;
}

TEST(SchedulerTest, TheBetterClassStartsFirst) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 64, .pages = 100, .page_size = 8});
  const uint64_t batch = story.Add(BlockCausal(4, 8), {.priority = 2});
  const uint64_t standard = story.Add(BlockCausal(4, 8), {.priority = 1});
  const uint64_t interactive = story.Add(BlockCausal(4, 8), {.priority = 0});
  EXPECT_THAT(story.Step(), ElementsAre(interactive));
  story.StepUntilEnd(interactive);
  EXPECT_THAT(story.Step(), ElementsAre(standard));
  story.StepUntilEnd(standard);
  EXPECT_THAT(story.Step(), ElementsAre(batch));
}

TEST(SchedulerTest, TheBetterClassGetsTheRowsThatThereAre) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 2 * kBlock, .pages = 100, .page_size = 8});
  story.Add(BlockCausal(4, 40), {.priority = 2});
  story.Add(BlockCausal(4, 40), {.priority = 1});
  story.Step();
  const uint64_t interactive = story.Add(BlockCausal(0, 40), {.priority = 0});
  int steps = 0;
  for (; !story.ended.contains(interactive); ++steps) EXPECT_THAT(story.Step(), testing::Contains(interactive));
  EXPECT_EQ(steps, 40) << "one token a step, and every step";
}

TEST(SchedulerTest, ABetterClassTakesThePlaceOfTheYoungestOfAWorseOne) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 64, .pages = 100, .page_size = 8});
  const uint64_t older = story.Add(BlockCausal(4, 40), {.priority = 2});
  const uint64_t younger = story.Add(BlockCausal(4, 40), {.priority = 2});
  story.Step();
  const uint64_t equal = story.Add(BlockCausal(4, 4), {.priority = 2});
  EXPECT_THAT(story.Step(), ElementsAre(older, younger)) << "its equals keep their places";
  const uint64_t better = story.Add(BlockCausal(4, 4), {.priority = 1});
  EXPECT_THAT(story.Step(), ElementsAre(older, better));
  EXPECT_EQ(story.scheduler.Find(younger)->preemptions, 1);
  EXPECT_EQ(story.scheduler.statistics().preempted, 1);
  story.StepUntilEnd(equal);
  story.StepUntilEnd(younger);
  EXPECT_EQ(story.ended[younger], CanvasAlone(BlockCausal(4, 40)));
}

TEST(SchedulerTest, OfATenantTheEarliestDeadlineGoesFirst) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 64, .pages = 100, .page_size = 8});
  const uint64_t without = story.Add(BlockCausal(4, 4));
  const uint64_t late = story.Add(BlockCausal(4, 4), {.deadline = story.now + absl::Seconds(9)});
  const uint64_t early = story.Add(BlockCausal(4, 4), {.deadline = story.now + absl::Seconds(3)});
  for (const uint64_t id : {early, late, without}) {
    EXPECT_THAT(story.Step(), ElementsAre(id));
    story.StepUntilEnd(id);
  }
}

TEST(SchedulerTest, PassedDeadlinesAreNamed) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 64, .pages = 100, .page_size = 8});
  story.Add(BlockCausal(4, 4), {.deadline = absl::Seconds(1005)});
  story.Add(BlockCausal(4, 4));
  story.Add(BlockCausal(4, 4), {.deadline = absl::Seconds(1003)});
  story.Add(BlockCausal(4, 4), {.deadline = absl::Seconds(1004)});
  EXPECT_THAT(story.scheduler.Expired(absl::Seconds(1002)), IsEmpty());
  EXPECT_THAT(story.scheduler.Expired(absl::Seconds(1004)), ElementsAre(3, 4));
  EXPECT_THAT(story.scheduler.Expired(absl::Seconds(2000)), ElementsAre(1, 3, 4));
}

TEST(SchedulerTest, WhatCanNeverRunIsRefusedWithBothValues) {
  const SchedulerLimits limits{.sequences_max = 1, .step_rows_max = 20, .pages = 4, .page_size = 8};
  EXPECT_TRUE(CheckFits(limits, BlockCausal(16, 16)).ok());
  EXPECT_EQ(CheckFits(limits, BlockCausal(16, 17)).message(),
            "prompt_ids (16) and max_tokens (17) need 5 pages, at most 4");
  EXPECT_EQ(CheckFits(limits, Bidirectional(10, 11, 0.0f)).message(),
            "prompt_ids (10) and max_tokens (11) need 21 rows in one step, at most 20");
  EXPECT_EQ(CheckFits(limits, Bidirectional(5, 6, 1.0f)).message(),
            "prompt_ids (5) and max_tokens (6) need 22 rows in one step, at most 20");
}

// One tenant's flood is not another's wait: rows are shared by tenants, not by sequences.
TEST(SchedulerTest, TenantsGetEqualRowsHoweverManySequencesTheyHave) {
  SchedulerStory story({.sequences_max = 24, .step_rows_max = 6 * kBlock, .pages = 2000, .page_size = 8});
  const std::vector<int> sequences = {16, 4, 3};
  std::vector<uint64_t> first;
  for (size_t tenant = 0; tenant < sequences.size(); ++tenant) {
    first.push_back(story.last_id + 1);
    for (int i = 0; i < sequences[tenant]; ++i) {
      story.Add(BlockCausal(4, 4000), {.tenant = std::string(1, static_cast<char>('a' + tenant))});
    }
  }
  for (int step = 0; step < 600; ++step) story.Step();
  std::vector<int> forwards(3, 0);
  for (uint64_t id = 1; id <= story.last_id; ++id) {
    const size_t tenant = id >= first[2] ? 2 : id >= first[1] ? 1 : 0;
    forwards[tenant] += story.scheduler.Find(id)->sequence.forwards();
  }
  for (const int of_tenant : forwards) EXPECT_NEAR(of_tenant, (forwards[0] + forwards[1] + forwards[2]) / 3, 60);
}

// A batch tenant that gets nothing gives newcomers of a better class no claim to what the others of that class had.
TEST(SchedulerTest, AStarvedClassLeavesTheSharesOfABetterOneAlone) {
  for (const int starved : {0, 4}) {
    SchedulerStory story({.sequences_max = 40, .step_rows_max = 8 * kBlock, .pages = 8000, .page_size = 8});
    const auto step = [&] {
      const std::vector<PlannedSegment> plan = story.Plan();
      Finish(story.scheduler, plan);
      story.now += absl::Milliseconds(10);
      return Ids(plan);
    };
    for (int i = 0; i < 16; ++i) story.Add(BlockCausal(0, 1000), {.priority = 0, .tenant = "a"});
    for (int i = 0; i < starved; ++i) story.Add(BlockCausal(0, 1000), {.priority = 2, .tenant = "z"});
    for (int i = 0; i < 500; ++i) step();
    const uint64_t first = story.last_id + 1;
    for (int i = 0; i < 16; ++i) story.Add(BlockCausal(0, 1000), {.priority = 0, .tenant = "c"});
    int turns_of_a = 0, turns_of_c = 0;
    for (int i = 0; i < 400; ++i) {
      for (const uint64_t id : step()) ++(id >= first ? turns_of_c : turns_of_a);
    }
    EXPECT_NEAR(turns_of_a, turns_of_c, 400 / 10) << "beside " << starved << " that wait";
    for (int i = 0; i < starved; ++i) {
      EXPECT_EQ(story.scheduler.Find(17 + static_cast<uint64_t>(i))->sequence.forwards(), 0);
    }
  }
}

TEST(SchedulerTest, AFreePlaceGoesToTheTenantThatHadLess) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 64, .pages = 100, .page_size = 8});
  for (int i = 0; i < 20; ++i) story.Add(BlockCausal(4, 8), {.tenant = "flood"});
  for (int i = 0; i < 5; ++i) story.Step();
  const uint64_t other = story.Add(BlockCausal(4, 8), {.tenant = "other"});
  EXPECT_LE(story.StepUntilEnd(other), 20);
}

// Under a load of the best class that never ends.
TEST(SchedulerTest, TheWorstClassEndsInBoundedTime) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 3 * kBlock, .pages = 16, .page_size = 4});
  const uint64_t batch = story.Add(BlockCausal(20, 8), {.priority = 2});
  uint64_t load[3] = {};
  int steps = 0;
  for (; !story.ended.contains(batch); ++steps) {
    ASSERT_LT(steps, 6000);
    for (uint64_t& id : load) {
      if (id == 0 || story.ended.contains(id)) id = story.Add(BlockCausal(8, 24), {.priority = 0});
    }
    story.Step();
  }
  // Two blocks, each after 15 s until it counts as better than the best class, and some time to get there.
  EXPECT_LE(steps * absl::Milliseconds(10), 2 * 3 * Scheduler::kAgeing + absl::Seconds(8));
  EXPECT_EQ(story.ended[batch], CanvasAlone(BlockCausal(20, 8)));
}

// What a preemption takes away is no progress: else it could go on so for ever.
TEST(SchedulerTest, ALongPromptThatIsPreemptedAgainAndAgainIsDoneInBoundedTime) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 64, .pages = 26, .page_size = 4});
  story.prefill_rows_max = kBlock;
  const uint64_t batch = story.Add(BlockCausal(80, 4), {.priority = 2});
  uint64_t interactive = 0;
  int steps = 0;
  for (; !story.ended.contains(batch); ++steps) {
    ASSERT_LT(steps, 4000);
    const bool gone = interactive == 0 || story.ended.contains(interactive);
    if (gone && steps % 15 == 0) interactive = story.Add(BlockCausal(20, 36), {.priority = 0});
    story.Step();
  }
  EXPECT_LE(steps * absl::Milliseconds(10), 3 * Scheduler::kAgeing + absl::Seconds(3));
}

}  // namespace
}  // namespace quicksilver
