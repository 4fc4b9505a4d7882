#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/scheduler_story.h"

namespace quicksilver {
namespace {

/// Draws of one seed, one after the other.
class Draws {
 public:
  explicit Draws(uint64_t seed) : seed_(seed) {}
  /// In [least, most].
  int32_t In(int32_t least, int32_t most) {
    const uint32_t word = Philox(seed_, count_++, 0, 0, 0).w[0];
    return least + static_cast<int32_t>(word % static_cast<uint32_t>(most - least + 1));
  }

 private:
  const uint64_t seed_;
  uint32_t count_ = 0;
};

struct Job {
  Sequence sequence;
  SchedulingTerms terms;
  int arrives = 0;  // Step.
  int leaves = 0;   // Cancelled then, if it still lives. 0: never.
};

// Prompts are made of few beginnings, so that many share pages.
std::vector<Job> RandomJobs(Draws& draws, const SchedulerLimits& limits, bool bidirectional) {
  std::vector<Job> jobs;
  const int32_t span = draws.In(1, 80);
  for (int i = 0; i < 24; ++i) {
    std::vector<TokenId> prompt;
    const int32_t shared = draws.In(0, 40), beginning = draws.In(0, 1), own = draws.In(1, 20);
    for (int32_t p = 0; p < shared; ++p) prompt.push_back((p * 7 + beginning) % 60);
    for (int32_t p = 0; p < own; ++p) prompt.push_back(draws.In(0, 59));
    const int32_t tokens = draws.In(1, 40);
    const float guidance = bidirectional && draws.In(0, 1) == 1 ? 1.0f : 0.0f;
    Job job{bidirectional ? Bidirectional(static_cast<int32_t>(prompt.size()), tokens, guidance)
                          : BlockCausal(prompt, tokens)};
    if (!CheckFits(limits, job.sequence).ok()) continue;
    job.terms.priority = draws.In(0, 2);
    job.terms.tenant = std::string(1, static_cast<char>('a' + draws.In(0, 2)));
    job.terms.cache_salt = std::vector<std::string>{"", "x", "x", "y"}[static_cast<size_t>(draws.In(0, 3))];
    if (draws.In(0, 2) == 0) job.terms.deadline = absl::Seconds(1000 + draws.In(0, 100));
    job.arrives = draws.In(0, span);
    if (draws.In(0, 7) == 0) job.leaves = job.arrives + draws.In(1, 60);
    jobs.push_back(std::move(job));
  }
  std::stable_sort(jobs.begin(), jobs.end(), [](const Job& a, const Job& b) { return a.arrives < b.arrives; });
  return jobs;
}

struct Totals {
  uint64_t preemptions = 0;
  uint64_t hits = 0;
  uint64_t evictions = 0;
};

void RunSeed(uint64_t seed, Totals& totals) {
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  Draws draws(seed);
  const bool bidirectional = draws.In(0, 4) == 0;
  SchedulerLimits limits;
  limits.sequences_max = draws.In(1, 8);
  limits.step_rows_max = bidirectional ? draws.In(100, 300) : std::vector<int>{8, 13, 64, 512}[draws.In(0, 3)];
  limits.page_size = kBlock * draws.In(1, 3);
  limits.pages = bidirectional ? draws.In(200, 300) / limits.page_size : draws.In(101, 260) / limits.page_size;
  limits.share_prefixes = draws.In(0, 3) > 0;
  const std::vector<Job> jobs = RandomJobs(draws, limits, bidirectional);
  SchedulerStory story(
      limits, draws.In(0, 4) > 0 ? HashPage : [](uint64_t before, absl::Span<const TokenId> tokens) {
        return HashPage(before, tokens) % 7;  // Mostly collisions.
      });
  story.prefill_rows_max = draws.In(0, 1) == 0 ? draws.In(0, 32) : 1 << 20;
  size_t cancelled = 0;
  for (int step = 0; story.ended.size() + cancelled < jobs.size(); ++step) {
    ASSERT_LT(step, 20000) << "somebody waits for ever";
    while (story.last_id < jobs.size() && jobs[story.last_id].arrives <= step) {
      story.Add(jobs[story.last_id].sequence, jobs[story.last_id].terms);
    }
    for (uint64_t id = 1; id <= story.last_id; ++id) {
      if (jobs[id - 1].leaves != step || !story.scheduler.Remove(id)) continue;
      ++cancelled;
    }
    const bool idle = story.scheduler.running() + story.scheduler.waiting() == 0;
    ASSERT_EQ(story.Step().empty(), idle) << "there was something to do";
    ASSERT_LE(story.scheduler.running(), limits.sequences_max);
  }
  const SchedulerStatistics statistics = story.scheduler.statistics();
  EXPECT_EQ(statistics.pages_used, 0);
  EXPECT_EQ(statistics.pages_free + statistics.pages_cached, limits.pages);
  for (const auto& [id, canvas] : story.ended) EXPECT_EQ(canvas, CanvasAlone(jobs[id - 1].sequence)) << id;
  totals.preemptions += statistics.preemptions;
  totals.hits += statistics.prefix_hit_tokens;
  totals.evictions += statistics.evictions;
}

// What a sequence says depends neither on what shares its batch, its pages or its prefix, nor on when it came, how its
// prompt was cut and how often it was preempted; and whatever happens, every page comes back and everybody ends.
TEST(SchedulerPropertyTest, EverySequenceEndsWithTheCanvasItHasAlone) {
  Totals totals;
  for (uint64_t seed = 0; seed < 100 && !testing::Test::HasFailure(); ++seed) RunSeed(seed, totals);
  EXPECT_GT(totals.preemptions, 200u);
  EXPECT_GT(totals.hits, 5000u);
  EXPECT_GT(totals.evictions, 200u);
}

// Equal calls, equal plans: what lets ranks decide apart.
TEST(SchedulerPropertyTest, EqualCallsGiveEqualPlans) {
  const SchedulerLimits limits{
      .sequences_max = 6, .step_rows_max = 24, .pages = 30, .page_size = 8, .share_prefixes = true};
  for (uint64_t seed = 0; seed < 10; ++seed) {
    Draws draws(seed);
    const std::vector<Job> jobs = RandomJobs(draws, limits, false);
    SchedulerStory one(limits), other(limits);
    for (const Job& job : jobs) {
      one.Add(job.sequence, job.terms);
      other.Add(job.sequence, job.terms);
    }
    while (one.ended.size() < jobs.size()) {
      const auto& a = one.Plan();
      const auto& b = other.Plan();
      ASSERT_EQ(Ids(a), Ids(b));
      for (size_t i = 0; i < a.size(); ++i) {
        ASSERT_EQ(a[i].segment.first_position, b[i].segment.first_position);
        ASSERT_EQ(a[i].segment.rows, b[i].segment.rows);
        ASSERT_EQ(a[i].running->pages, b[i].running->pages);
      }
      one.ended.merge(Finish(one.scheduler, std::vector<PlannedSegment>(a)));
      Finish(other.scheduler, std::vector<PlannedSegment>(b));
    }
  }
}

// Of all classes and sizes, more than can be held, most of the best class: nobody stands still for long.
TEST(SchedulerPropertyTest, NobodyStandsStillBeyondABound) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Draws draws(seed);
    SchedulerStory story(
        {.sequences_max = 4, .step_rows_max = 32, .pages = 30, .page_size = 8, .share_prefixes = true});
    struct Progress {
      int32_t forwards = 0;
      absl::Duration when;
    };
    std::map<uint64_t, Progress> live;
    absl::Duration longest;
    for (int step = 0; step < 15000; ++step) {
      while (live.size() < 12) {
        const Sequence sequence = BlockCausal(draws.In(1, 100), draws.In(4, 60));
        const int32_t priority = draws.In(0, 9) < 8 ? 0 : draws.In(1, 2);
        const uint64_t id = story.Add(sequence, {.priority = priority, .cache_salt = "s"});
        live[id] = {0, story.now};
      }
      Finish(story.scheduler, std::vector<PlannedSegment>(story.Plan()));
      story.now += absl::Milliseconds(20);
      for (auto it = live.begin(); it != live.end();) {
        const RunningSequence* const running = story.scheduler.Find(it->first);
        longest = std::max(longest, story.now - it->second.when);
        if (running != nullptr && running->sequence.forwards() > it->second.forwards) {
          it->second = {running->sequence.forwards(), story.now};
        }
        it = running == nullptr ? live.erase(it) : std::next(it);
      }
    }
    EXPECT_LE(longest, 4 * Scheduler::kAgeing) << "the worst class counts as better than the best after three times";
  }
}

// Two tenants that always want more get the same rows, whatever their sequences are like.
TEST(SchedulerPropertyTest, TenantsThatAlwaysWantMoreDifferByLessThanAFewSteps) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    Draws draws(seed);
    SchedulerStory story({.sequences_max = 12, .step_rows_max = 24, .pages = 400, .page_size = 8});
    std::map<uint64_t, int> owner;
    std::vector<int64_t> rows(2, 0);
    int64_t gap = 0;
    for (int step = 0; step < 1500; ++step) {
      std::vector<int> live(2, 0);
      for (const auto& [id, tenant] : owner) live[static_cast<size_t>(tenant)] += story.scheduler.Find(id) ? 1 : 0;
      for (int tenant = 0; tenant < 2; ++tenant) {
        for (int i = live[static_cast<size_t>(tenant)]; i < (tenant == 0 ? 8 : 20); ++i) {
          const Sequence sequence = BlockCausal(draws.In(1, tenant == 0 ? 8 : 60), draws.In(4, 60));
          owner[story.Add(sequence, {.tenant = tenant == 0 ? "a" : "b"})] = tenant;
        }
      }
      const std::vector<PlannedSegment> plan = story.Plan();
      for (const auto& [running, segment] : plan) rows[static_cast<size_t>(owner[running->id])] += segment.rows;
      Finish(story.scheduler, plan);
      story.now += absl::Milliseconds(1);
      if (step > 100) gap = std::max(gap, std::abs(rows[0] - rows[1]));
    }
    EXPECT_LE(gap, 30 * 24) << "of " << rows[0] + rows[1] << ": places change hands only when a sequence ends";
  }
}

}  // namespace
}  // namespace quicksilver
