#include <map>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/scheduler_story.h"
#include "worker/engine/scheduler.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

std::vector<TokenId> Tokens(int32_t count, TokenId first) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back((first + 7 * i) % 60);
  return tokens;
}

SchedulingTerms Salted(const std::string& salt) { return {.cache_salt = salt}; }

TEST(SchedulerPagesTest, PagesAreTakenAsASequenceGrows) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 16, .pages = 100, .page_size = 8});
  story.Add(BlockCausal(40, 40));
  std::vector<size_t> held;
  for (int step = 0; step < 12; ++step) {
    held.push_back(story.Plan()[0].running->pages.size());
    EXPECT_EQ(story.scheduler.statistics().pages_used, static_cast<int32_t>(held.back()));
    Finish(story.scheduler, std::vector<PlannedSegment>(story.Plan()));
  }
  EXPECT_THAT(std::vector<size_t>(held.begin(), held.begin() + 3), ElementsAre(2, 4, 6));
  EXPECT_EQ(held.back(), 7u);
}

TEST(SchedulerPagesTest, ABidirectionalCanvasHoldsAllItsPagesAndItsGuideAsMany) {
  SchedulerStory story({.sequences_max = 8, .step_rows_max = 64, .pages = 6, .page_size = 8});
  story.Add(Bidirectional(8, 8, 1.0f));
  const std::vector<PlannedSegment> plan = story.Plan();
  EXPECT_EQ(story.scheduler.pages_free(), 2);
  EXPECT_EQ(plan[0].running->pages.size(), 2u);
  EXPECT_EQ(plan[0].running->guide_pages.size(), 2u);
  EXPECT_EQ(Rows(plan), 32);
}

// Only then are others needed: all but the oldest, and they come back with the same canvases.
TEST(SchedulerPagesTest, WhenPagesRunOutTheYoungestArePreemptedAndNothingIsLost) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 64, .pages = 16, .page_size = 4});
  for (int i = 0; i < 4; ++i) story.Add(BlockCausal(Tokens(8, i), 40));  // 12 pages each at the end.
  while (story.scheduler.waiting() + story.scheduler.running() > 0) {
    story.Step();
    if (const RunningSequence* oldest = story.scheduler.Find(1)) {
      EXPECT_EQ(oldest->preemptions, 0);
    }
  }
  EXPECT_GT(story.scheduler.statistics().preemptions, 0u);
  EXPECT_EQ(story.scheduler.pages_free(), 16);
  for (uint64_t id = 1; id <= 4; ++id) {
    EXPECT_EQ(story.ended[id], CanvasAlone(BlockCausal(Tokens(8, static_cast<TokenId>(id - 1)), 40)));
  }
}

// Each needs more than half of the pool, and they all grow at once.
TEST(SchedulerPagesTest, SequencesLargerThanHalfThePoolAllEnd) {
  for (const bool bidirectional : {false, true}) {
    SchedulerStory story({.sequences_max = 6, .step_rows_max = 64, .pages = 10, .page_size = 4});
    for (int i = 0; i < 6; ++i) {
      story.Add(bidirectional ? Bidirectional(8, 24, 0.0f) : BlockCausal(Tokens(4, i), 32), {.priority = i % 3});
    }
    int steps = 0;
    for (; story.ended.size() < 6; ++steps) {
      ASSERT_LT(steps, 400);
      ASSERT_FALSE(story.Step().empty());
    }
    EXPECT_EQ(story.scheduler.pages_free(), 10);
  }
}

// Two that cannot both be held do not take the pages from one another again and again.
TEST(SchedulerPagesTest, ASequenceNeverLosesItsPagesToAYoungerEqual) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 64, .pages = 10, .page_size = 4});
  const uint64_t older = story.Add(BlockCausal(Tokens(4, 1), 32));
  const uint64_t younger = story.Add(BlockCausal(Tokens(4, 2), 32), {.deadline = absl::Seconds(1)});
  story.StepUntilEnd(older);
  EXPECT_FALSE(story.ended.contains(younger));
  EXPECT_EQ(story.scheduler.statistics().preemptions, 1u);
  story.StepUntilEnd(younger);
  EXPECT_EQ(story.scheduler.statistics().preemptions, 1u);
}

TEST(SchedulerPagesTest, ABetterClassTakesPagesFromAWorseOne) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 256, .pages = 12, .page_size = 4});
  const uint64_t batch = story.Add(BlockCausal(Tokens(36, 1), 8), {.priority = 2});
  story.Step();
  const uint64_t interactive = story.Add(BlockCausal(Tokens(36, 2), 8), {.priority = 0});
  EXPECT_THAT(story.Step(), ElementsAre(interactive));
  story.StepUntilEnd(batch);
  EXPECT_EQ(story.ended[batch], CanvasAlone(BlockCausal(Tokens(36, 1), 8)));
}

// A start that would only be undone by those that run is put off.
TEST(SchedulerPagesTest, ASequenceWaitsForThePagesOfItsWholePrompt) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 256, .pages = 12, .page_size = 4});
  story.Add(BlockCausal(Tokens(20, 1), 8));
  story.Step();
  story.Add(BlockCausal(Tokens(24, 2), 8));
  EXPECT_THAT(story.Step(), ElementsAre(1));
  story.Add(BlockCausal(Tokens(4, 2), 4));
  EXPECT_THAT(story.Step(), ElementsAre(1, 3)) << "a small one goes first, for a time";
  story.StepUntilEnd(2);
  EXPECT_EQ(story.scheduler.statistics().preemptions, 0u);
}

TEST(SchedulerPagesTest, PagesThatAPromptWillNeedAreNotGivenToNewcomers) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 256, .pages = 12, .page_size = 4});
  story.prefill_rows_max = 8;
  story.Add(BlockCausal(Tokens(32, 1), 8));
  story.Step();
  EXPECT_EQ(story.scheduler.pages_free(), 10);
  story.Add(BlockCausal(Tokens(16, 2), 8));
  EXPECT_THAT(story.Step(), ElementsAre(1));
  story.StepUntilEnd(2);
  EXPECT_EQ(story.scheduler.statistics().preemptions, 0u);
}

TEST(SchedulerPagesTest, ALargeSequenceIsNotOvertakenForEver) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 256, .pages = 24, .page_size = 4});
  uint64_t load[3] = {};
  int32_t first = 0;
  const auto keep_loaded = [&] {
    for (uint64_t& id : load) {
      if (id == 0 || story.ended.contains(id)) id = story.Add(BlockCausal(Tokens(8, 5), id == 0 ? ++first * 5 : 20));
    }
  };
  for (int i = 0; i < 20; ++i) {
    keep_loaded();
    story.Step();
  }
  const uint64_t large = story.Add(BlockCausal(Tokens(80, 2), 8));
  int steps = 0;
  for (; !story.ended.contains(large); ++steps) {
    ASSERT_LT(steps, 1000);
    keep_loaded();
    story.Step();
  }
  EXPECT_LE(steps * absl::Milliseconds(10), Scheduler::kAgeing + absl::Seconds(2));
}

// Who has waited beyond the best class keeps what it got until that has been of use.
TEST(SchedulerPagesTest, AStarvedSequenceKeepsItsPagesForOneBlock) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 64, .pages = 12, .page_size = 4});
  const uint64_t starved = story.Add(BlockCausal(Tokens(36, 1), 12), {.priority = 2});
  story.now += 3 * Scheduler::kAgeing;
  EXPECT_THAT(story.Step(), ElementsAre(starved));
  const uint64_t interactive = story.Add(BlockCausal(Tokens(36, 2), 8), {.priority = 0});
  for (int i = 1; i < kBlock; ++i) EXPECT_THAT(story.Step(), ElementsAre(starved)) << i;
  while (story.Step() != std::vector<uint64_t>{interactive}) ASSERT_EQ(story.scheduler.Find(starved)->preemptions, 0);
  EXPECT_EQ(story.scheduler.Find(starved)->sequence.block(), 10);
  story.StepUntilEnd(starved);
}

TEST(SchedulerPagesTest, AKnownPrefixIsNotPrefilledAgain) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 64, .pages = 100, .page_size = 8, .share_prefixes = true});
  std::vector<TokenId> prompt = Tokens(42, 3);
  const uint64_t first = story.Add(BlockCausal(prompt, 8), Salted("s"));
  story.StepUntilEnd(first);
  EXPECT_EQ(story.scheduler.statistics().pages_used, 0);
  EXPECT_EQ(story.scheduler.statistics().pages_cached, 6) << "the answer's first block included";
  prompt.back() = 0;
  const uint64_t second = story.Add(BlockCausal(prompt, 8), Salted("s"));
  const std::vector<PlannedSegment> plan = story.Plan();
  EXPECT_EQ(plan[0].segment.first_position, 40);
  EXPECT_TRUE(plan[0].segment.denoise);
  EXPECT_EQ(plan[0].running->cached_tokens, 40);
  EXPECT_EQ(story.scheduler.statistics().prefix_hit_tokens, 40u);
  EXPECT_EQ(story.scheduler.statistics().prefix_query_tokens, 80u);
  Finish(story.scheduler, std::vector<PlannedSegment>(plan));
  story.StepUntilEnd(second);
  EXPECT_EQ(story.ended[second], CanvasAlone(BlockCausal(prompt, 8)));
}

// The answer's blocks are final as well: a conversation goes on where it stopped.
TEST(SchedulerPagesTest, AConversationFindsTheAnswerBefore) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 64, .pages = 100, .page_size = 4, .share_prefixes = true});
  const uint64_t first = story.Add(BlockCausal(Tokens(10, 3), 22), Salted("s"));
  story.StepUntilEnd(first);
  std::vector<TokenId> longer = story.ended[first];
  longer.resize(40, 5);
  story.Add(BlockCausal(longer, 8), Salted("s"));
  EXPECT_EQ(story.Plan()[0].running->cached_tokens, 28) << "all but the block whose clean keys nobody needed";
}

TEST(SchedulerPagesTest, OnlyEqualSaltsShareAndWithoutASaltNobody) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 64, .pages = 100, .page_size = 8, .share_prefixes = true});
  story.StepUntilEnd(story.Add(BlockCausal(Tokens(42, 3), 8), Salted("a")));
  for (const auto& [salt, tokens] : std::vector<std::pair<std::string, int>>{{"b", 0}, {"", 0}, {"", 0}, {"a", 40}}) {
    const uint64_t id = story.Add(BlockCausal(Tokens(42, 3), 8), Salted(salt));
    EXPECT_EQ(story.Plan()[0].running->cached_tokens, tokens) << salt;
    Finish(story.scheduler, std::vector<PlannedSegment>(story.Plan()));
    EXPECT_TRUE(story.scheduler.Remove(id));
  }
}

TEST(SchedulerPagesTest, NothingIsSharedWhereSharingIsOff) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 64, .pages = 100, .page_size = 8});
  story.StepUntilEnd(story.Add(BlockCausal(Tokens(42, 3), 8), Salted("a")));
  EXPECT_EQ(story.scheduler.pages_free(), 100);
}

// What both computed is held once from then on.
TEST(SchedulerPagesTest, APrefixComputedTwiceIsKeptOnce) {
  SchedulerStory story(
      {.sequences_max = 4, .step_rows_max = 128, .pages = 100, .page_size = 8, .share_prefixes = true});
  story.prefill_rows_max = kBlock;
  story.Add(BlockCausal(Tokens(32, 3), 8), {.priority = 2, .cache_salt = "s"});
  story.Step();
  story.prefill_rows_max = 128;
  story.Add(BlockCausal(Tokens(32, 3), 8), {.priority = 1, .cache_salt = "s"});
  story.Step();
  EXPECT_EQ(story.scheduler.statistics().pages_used, 10);
  const std::vector<PlannedSegment> plan = story.Plan();
  EXPECT_EQ(story.scheduler.statistics().pages_used, 6);
  ASSERT_EQ(plan.size(), 2u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(plan[0].running->pages[i], plan[1].running->pages[i]);
  EXPECT_NE(plan[0].running->pages[4], plan[1].running->pages[4]);
  Finish(story.scheduler, std::vector<PlannedSegment>(plan));
  story.StepUntilEnd(1);
  story.StepUntilEnd(2);
}

// Many at once with the same long beginning: it is computed once.
TEST(SchedulerPagesTest, WhoNeedsAPrefixThatIsBeingComputedWaitsForIt) {
  SchedulerStory story(
      {.sequences_max = 16, .step_rows_max = 64, .pages = 400, .page_size = 8, .share_prefixes = true});
  for (TokenId i = 0; i < 12; ++i) {
    std::vector<TokenId> prompt = Tokens(160, 3);
    for (TokenId p = 0; p < 6; ++p) prompt.push_back(i + p);
    story.Add(BlockCausal(prompt, 8), Salted("s"));
  }
  const uint64_t different = story.Add(BlockCausal(Tokens(160, 4), 8), Salted("s"));
  EXPECT_THAT(story.Step(), ElementsAre(1, different));
  for (uint64_t id = 1; id <= different; ++id) story.StepUntilEnd(id);
  EXPECT_EQ(story.scheduler.statistics().prefix_hit_tokens, 11u * 160);
}

TEST(SchedulerPagesTest, NobodyWaitsForTheSlowPrefixOfALessUrgentOne) {
  SchedulerStory story({.sequences_max = 4, .step_rows_max = 64, .pages = 400, .page_size = 8, .share_prefixes = true});
  story.prefill_rows_max = 8;
  story.Add(BlockCausal(Tokens(160, 3), 8), {.priority = 1, .cache_salt = "s"});
  story.Step();
  story.Add(BlockCausal(Tokens(160, 3), 8), {.priority = 0, .cache_salt = "s"});
  EXPECT_EQ(story.Step(), (std::vector<uint64_t>{2})) << "with all the rows that there are";
  EXPECT_EQ(story.scheduler.running(), 2);
}

TEST(SchedulerPagesTest, APreemptedSequenceFindsItsOwnPagesAgain) {
  SchedulerStory story({.sequences_max = 1, .step_rows_max = 64, .pages = 40, .page_size = 4, .share_prefixes = true});
  const uint64_t batch = story.Add(BlockCausal(Tokens(32, 1), 16), {.priority = 2, .cache_salt = "s"});
  for (int i = 0; i < 6; ++i) story.Step();
  story.StepUntilEnd(story.Add(BlockCausal(Tokens(4, 2), 4), {.priority = 0, .cache_salt = "s"}));
  const std::vector<PlannedSegment> plan = story.Plan();
  ASSERT_THAT(Ids(plan), ElementsAre(batch));
  EXPECT_EQ(plan[0].segment.first_position, 36);
  EXPECT_TRUE(plan[0].segment.denoise);
  EXPECT_EQ(plan[0].running->cached_tokens, 0) << "it found nothing when it came";
  EXPECT_EQ(plan[0].running->preemptions, 1);
  Finish(story.scheduler, std::vector<PlannedSegment>(plan));
  story.StepUntilEnd(batch);
  EXPECT_EQ(story.ended[batch], CanvasAlone(BlockCausal(Tokens(32, 1), 16)));
}

TEST(SchedulerPagesTest, CachedPagesAreGivenUpBeforeAnybodyIsPreempted) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 64, .pages = 24, .page_size = 4, .share_prefixes = true});
  for (TokenId i = 0; i < 12; ++i) story.StepUntilEnd(story.Add(BlockCausal(Tokens(32, i), 8), Salted("s")));
  const SchedulerStatistics statistics = story.scheduler.statistics();
  EXPECT_EQ(statistics.preemptions, 0u);
  EXPECT_GT(statistics.evictions, 50u);
  EXPECT_EQ(statistics.pages_cached + statistics.pages_free, 24);
}

// Every hash is the same: all pages look alike, and none is mistaken for another.
TEST(SchedulerPagesTest, CollidingHashesCostHitsAndNothingElse) {
  SchedulerStory story({.sequences_max = 3, .step_rows_max = 64, .pages = 60, .page_size = 4, .share_prefixes = true},
                       [](uint64_t, absl::Span<const TokenId>) -> uint64_t { return 7; });
  for (TokenId i = 0; i < 9; ++i) story.Add(BlockCausal(Tokens(24, i % 3), 12), Salted("s"));
  for (uint64_t id = 1; id <= 9; ++id) story.StepUntilEnd(id);
  for (uint64_t id = 1; id <= 9; ++id) {
    EXPECT_EQ(story.ended[id], CanvasAlone(BlockCausal(Tokens(24, static_cast<TokenId>((id - 1) % 3)), 12)));
  }
  EXPECT_EQ(story.scheduler.statistics().pages_cached, 1);
}

// A row of a page that made logits infinite must not be handed on.
TEST(SchedulerPagesTest, PagesOfAnUnsoundSequenceAreNotShared) {
  SchedulerStory story({.sequences_max = 3, .step_rows_max = 64, .pages = 60, .page_size = 4, .share_prefixes = true});
  const uint64_t sound = story.Add(BlockCausal(Tokens(24, 1), 12), Salted("s"));
  for (int i = 0; i < 3; ++i) story.Step();
  const uint64_t unsound = story.Add(BlockCausal(Tokens(24, 1), 12), Salted("s"));
  story.Step();
  EXPECT_EQ(story.scheduler.Find(unsound)->cached_tokens, 24);
  EXPECT_TRUE(story.scheduler.Remove(unsound, /*sound=*/false));
  story.scheduler.Check();
  const uint64_t newcomer = story.Add(BlockCausal(Tokens(24, 1), 12), Salted("s"));
  story.Step();
  EXPECT_EQ(story.scheduler.Find(newcomer)->cached_tokens, 0);
  story.StepUntilEnd(sound);
  story.StepUntilEnd(newcomer);
  EXPECT_EQ(story.ended[sound], story.ended[newcomer]);
}

// Whoever breaks an invariant finds out at the next step, with the state and without contents.
TEST(SchedulerPagesDeathTest, APageThatTwoSequencesHoldAborts) {
  SchedulerStory story({.sequences_max = 2, .step_rows_max = 64, .pages = 60, .page_size = 4});
  for (TokenId i = 0; i < 2; ++i) story.Add(BlockCausal(Tokens(24, i), 12));
  story.Step();
  const std::vector<PlannedSegment> plan = story.Plan();
  plan[0].running->pages.back() = plan[1].running->pages.back();
  EXPECT_DEATH(story.scheduler.Check(), "a page has the owners that hold it(.|\n)*sequence 2: class 1, runs, pages 7");
  plan[0].running->pages.push_back(0);
  EXPECT_DEATH(story.Plan(), "the pages of all sequences are those that have owners");
}

}  // namespace
}  // namespace quicksilver
