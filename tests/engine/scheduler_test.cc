#include "worker/engine/scheduler.h"

#include <algorithm>
#include <map>
#include <vector>

#include "common/philox.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr TokenId kMask = 99;

Sequence BlockCausal(int32_t prompt, int32_t tokens_max) {
  SequenceSpec spec;
  spec.mask_id = kMask;
  spec.positions_max = 1000;
  spec.prompt.assign(static_cast<size_t>(prompt), 1);
  spec.tokens_max = tokens_max;
  spec.decoding.block_length = spec.decoding.steps = 4;
  spec.decoding.policy = Policy::kStatic;
  return Sequence(spec);
}

Sequence Bidirectional(int32_t prompt, int32_t tokens_max, float guidance_scale) {
  SequenceSpec spec = BlockCausal(prompt, tokens_max).spec();
  spec.grid = BlockGrid::kAfterPrompt;
  spec.decoding.block_length = spec.decoding.steps = tokens_max;
  spec.decoding.guidance_scale = guidance_scale;
  return Sequence(spec);
}

/// A model: what a row says depends on its position and on the open block's tokens.
RowChoice Says(const Sequence& sequence, int32_t position) {
  uint64_t hash = static_cast<uint64_t>(position);
  for (const TokenId token : sequence.canvas()) hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001B3u;
  const PhiloxWords words = Philox(hash, 1, 2, 3, 4);
  return {static_cast<TokenId>(words.w[0] % 60), static_cast<float>(words.w[1] % 1000) / 1000.0f, -1.0f, 0.0f, true};
}

/// Applies a step and returns the sequences that ended, with their canvases.
std::map<uint64_t, std::vector<TokenId>> Finish(Scheduler& scheduler, const std::vector<PlannedSegment>& plan) {
  std::map<uint64_t, std::vector<TokenId>> ended;
  for (const PlannedSegment& planned : plan) {
    Sequence& sequence = planned.running->sequence;
    if (!planned.segment.denoise) {
      sequence.ApplyPrefill(planned.segment);
      continue;
    }
    std::vector<RowChoice> choices;
    for (const int32_t position : sequence.masked()) choices.push_back(Says(sequence, position));
    if (sequence.ApplyDenoise(planned.segment, choices).end == SequenceEndReason::kNone) continue;
    const uint64_t id = planned.running->id;
    ended[id].assign(sequence.canvas().begin(), sequence.canvas().end());
    EXPECT_TRUE(scheduler.Remove(id));
  }
  return ended;
}

std::vector<uint64_t> Ids(const std::vector<PlannedSegment>& plan) {
  std::vector<uint64_t> ids;
  for (const PlannedSegment& planned : plan) ids.push_back(planned.running->id);
  return ids;
}

int32_t Rows(const std::vector<PlannedSegment>& plan) {
  int32_t rows = 0;
  for (const PlannedSegment& planned : plan) {
    rows += planned.segment.rows * (planned.running->sequence.guided() ? 2 : 1);
  }
  return rows;
}

TEST(SchedulerTest, SequencesStartInOrderUpToTheirNumber) {
  Scheduler scheduler({.sequences_max = 2, .step_rows_max = 64, .pages = 100, .page_size = 8});
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Add(id, BlockCausal(4, 4), {}, absl::ZeroDuration());
  EXPECT_EQ(scheduler.waiting(), 3);
  const std::vector<PlannedSegment> plan = scheduler.Plan(absl::ZeroDuration(), 1000);
  EXPECT_THAT(Ids(plan), ElementsAre(1, 2));
  EXPECT_EQ(scheduler.running(), 2);
  EXPECT_EQ(scheduler.waiting(), 1);
  EXPECT_TRUE(scheduler.Remove(1));
  EXPECT_THAT(Ids(scheduler.Plan(absl::ZeroDuration(), 1000)), ElementsAre(2, 3));
}

// Pages are reserved for the whole canvas: a running sequence can never run dry.
TEST(SchedulerTest, ASequenceWaitsUntilThePagesOfItsWholeCanvasAreFree) {
  Scheduler scheduler({.sequences_max = 8, .step_rows_max = 64, .pages = 5, .page_size = 8});
  scheduler.Add(1, BlockCausal(8, 16), {}, absl::ZeroDuration());  // 3 pages.
  scheduler.Add(2, BlockCausal(8, 16), {}, absl::ZeroDuration());
  EXPECT_THAT(Ids(scheduler.Plan(absl::ZeroDuration(), 1000)), ElementsAre(1));
  EXPECT_EQ(scheduler.pages_free(), 2);
  EXPECT_TRUE(scheduler.Remove(1));
  EXPECT_EQ(scheduler.pages_free(), 5);
  EXPECT_THAT(Ids(scheduler.Plan(absl::ZeroDuration(), 1000)), ElementsAre(2));
}

TEST(SchedulerTest, AGuidedSequenceHoldsPagesForItsGuideToo) {
  Scheduler scheduler({.sequences_max = 8, .step_rows_max = 64, .pages = 4, .page_size = 8});
  scheduler.Add(1, Bidirectional(8, 8, 1.0f), {}, absl::ZeroDuration());
  const std::vector<PlannedSegment> plan = scheduler.Plan(absl::ZeroDuration(), 1000);
  EXPECT_EQ(scheduler.pages_free(), 0);
  EXPECT_EQ(plan[0].running->guide_pages.size(), 2u);
  EXPECT_EQ(Rows(plan), 32);
}

TEST(SchedulerTest, WaitingAndRunningSequencesCanBeRemoved) {
  Scheduler scheduler({.sequences_max = 1, .step_rows_max = 64, .pages = 10, .page_size = 8});
  scheduler.Add(1, BlockCausal(4, 4), {}, absl::ZeroDuration());
  scheduler.Add(2, BlockCausal(4, 4), {}, absl::ZeroDuration());
  scheduler.Plan(absl::ZeroDuration(), 1000);
  EXPECT_TRUE(scheduler.Remove(2));
  EXPECT_TRUE(scheduler.Remove(1));
  EXPECT_FALSE(scheduler.Remove(1));
  EXPECT_EQ(scheduler.pages_free(), 10);
  EXPECT_THAT(scheduler.Plan(absl::ZeroDuration(), 1000), IsEmpty());
}

// No head-of-line blocking: a long prompt is prefilled beside the others' steps.
TEST(SchedulerTest, ALongPromptLeavesEveryDenoisingSequenceItsStep) {
  Scheduler scheduler({.sequences_max = 8, .step_rows_max = 32, .pages = 200, .page_size = 8});
  for (uint64_t id = 1; id <= 2; ++id) scheduler.Add(id, BlockCausal(4, 200), {}, absl::ZeroDuration());
  Finish(scheduler, scheduler.Plan(absl::ZeroDuration(), 1000));
  scheduler.Add(3, BlockCausal(400, 4), {}, absl::ZeroDuration());
  int steps = 0;
  for (bool prefilling = true; prefilling; ++steps) {
    const std::vector<PlannedSegment> plan = scheduler.Plan(absl::ZeroDuration(), 1000);
    ASSERT_THAT(Ids(plan), ElementsAre(1, 2, 3));
    EXPECT_TRUE(plan[0].segment.denoise && plan[1].segment.denoise);
    EXPECT_LE(Rows(plan), 32);
    prefilling = !plan[2].segment.denoise;
    EXPECT_TRUE(!prefilling || plan[2].segment.rows >= 16) << "what the others leave goes to the prompt";
    Finish(scheduler, plan);
  }
  EXPECT_LT(steps, 30);
}

// Nor the other way round: full blocks do not keep a prompt from its first token.
TEST(SchedulerTest, ManyDenoisingSequencesLeaveAPromptItsShare) {
  Scheduler scheduler({.sequences_max = 16, .step_rows_max = 32, .pages = 400, .page_size = 8});
  for (uint64_t id = 1; id <= 10; ++id) scheduler.Add(id, BlockCausal(4, 200), {}, absl::ZeroDuration());
  for (int i = 0; i < 4; ++i) Finish(scheduler, scheduler.Plan(absl::ZeroDuration(), 1000));
  scheduler.Add(11, BlockCausal(64, 4), {}, absl::ZeroDuration());
  int steps = 0;
  for (bool denoised = false; !denoised; ++steps) {
    ASSERT_LT(steps, 60);
    const std::vector<PlannedSegment> plan = scheduler.Plan(absl::ZeroDuration(), 1000);
    for (const PlannedSegment& planned : plan) denoised |= planned.running->id == 11 && planned.segment.denoise;
    Finish(scheduler, plan);
  }
}

TEST(SchedulerTest, WhenRowsAreShortEverySequenceGetsItsTurn) {
  Scheduler scheduler({.sequences_max = 16, .step_rows_max = 40, .pages = 400, .page_size = 8});
  for (uint64_t id = 1; id <= 6; ++id)
    scheduler.Add(id, Bidirectional(8, 8, 0.0f), {}, absl::ZeroDuration());  // 16 rows each: 2 a step.
  std::map<uint64_t, int> turns;
  for (int step = 0; step < 6; ++step) {
    const std::vector<PlannedSegment> plan = scheduler.Plan(absl::ZeroDuration(), 1000);
    EXPECT_EQ(plan.size(), 2u);
    for (const uint64_t id : Ids(plan)) ++turns[id];
    Finish(scheduler, plan);
  }
  for (uint64_t id = 1; id <= 6; ++id) EXPECT_EQ(turns[id], 2) << id;
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

struct Job {
  Sequence sequence;
  int arrives;
};

std::vector<Job> RandomJobs(uint64_t seed) {
  std::vector<Job> jobs;
  for (uint32_t i = 0; i < 24; ++i) {
    const PhiloxWords roll = Philox(seed, i, 0, 0, 0);
    const int32_t prompt = 1 + static_cast<int32_t>(roll.w[0] % 60), tokens = 1 + static_cast<int32_t>(roll.w[1] % 40);
    jobs.push_back({BlockCausal(prompt, tokens), static_cast<int>(roll.w[2] % 50)});
  }
  std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.arrives < b.arrives; });
  return jobs;
}

// What a sequence says must not depend on what shares its batch, on when it came, or on how its prompt was cut.
TEST(SchedulerTest, EverySequenceEndsWithTheCanvasItHasAlone) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    for (const int32_t rows : {8, 13, 64, 512}) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << rows << " rows");
      const std::vector<Job> jobs = RandomJobs(seed);
      Scheduler scheduler({.sequences_max = 5, .step_rows_max = rows, .pages = 40, .page_size = 4});
      std::map<uint64_t, std::vector<TokenId>> ended;
      size_t added = 0;
      for (int step = 0; ended.size() < jobs.size(); ++step) {
        ASSERT_LT(step, 20000);
        for (; added < jobs.size() && jobs[added].arrives <= step; ++added) {
          scheduler.Add(added + 1, jobs[added].sequence, {}, absl::ZeroDuration());
        }
        const std::vector<PlannedSegment> plan = scheduler.Plan(absl::ZeroDuration(), 1000);
        ASSERT_LE(Rows(plan), rows);
        ASSERT_LE(scheduler.running(), 5);
        ended.merge(Finish(scheduler, plan));
      }
      EXPECT_EQ(scheduler.pages_free(), 40);
      for (size_t i = 0; i < jobs.size(); ++i) {
        Scheduler alone({.sequences_max = 1, .step_rows_max = 512, .pages = 40, .page_size = 4});
        alone.Add(1, jobs[i].sequence, {}, absl::ZeroDuration());
        std::map<uint64_t, std::vector<TokenId>> expected;
        while (expected.empty()) expected = Finish(alone, alone.Plan(absl::ZeroDuration(), 1000));
        EXPECT_EQ(ended[i + 1], expected[1]);
      }
    }
  }
}

TEST(PagePoolTest, GivesEveryPageOnceAndTakesItBack) {
  PagePool pool(4);
  const std::vector<int32_t> first = *pool.Take(3);
  EXPECT_THAT(first, testing::UnorderedElementsAre(0, 1, 2));
  EXPECT_FALSE(pool.Take(2).has_value());
  EXPECT_EQ(pool.free(), 1) << "a refused request takes nothing";
  pool.Give(first);
  EXPECT_EQ(pool.free(), 4);
  EXPECT_THAT(*pool.Take(4), testing::UnorderedElementsAre(0, 1, 2, 3));
}

TEST(PagePoolDeathTest, APageIsNotGivenBackTwice) {
  PagePool pool(4);
  const std::vector<int32_t> pages = *pool.Take(2);
  pool.Give(pages);
  EXPECT_DEATH(pool.Give(pages), "CHECK failed");
}

}  // namespace
}  // namespace quicksilver
