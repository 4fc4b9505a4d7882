#include "coordinator/core/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "coordinator/core/circuit_breaker.h"
#include "coordinator/core/prefix_chain.h"
#include "coordinator/core/prefix_index.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAreArray;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr absl::Duration kNow = absl::Seconds(100);
const std::vector<uint64_t> kChain = {11, 22, 33, 44};

class PlacementTest : public testing::Test {
 protected:
  GroupState& Join(uint32_t g, GroupBeat beat = {}, const std::string& fingerprint = "f") {
    GroupState& group = placement_.Join(
        {GroupId{g}, 1},
        {.epoch = 1, .model = "m", .fingerprint = fingerprint, .sequences_max = 10, .positions_max = 1000}, kNow);
    beat.ready = true;
    placement_.OnBeat(group, beat, kNow);
    return group;
  }
  void Add(GroupState& group, const std::vector<uint64_t>& prefix = {}) {
    placement_.AddSequence(group, SequenceId{++last_sequence_}, {.positions = 10, .prefix = prefix}, 10, kNow);
  }
  GroupPool& all() { return placement_.FindModel("m")->all; }
  uint32_t Choose(uint64_t key, const std::vector<uint64_t>& prefix = {}) {
    GroupState* group = placement_.Choose(all(), all().open, {.key = key, .positions = 10, .prefix = prefix});
    return group == nullptr ? ~0u : static_cast<uint32_t>(group->connection.group);
  }

  Placement placement_;
  uint64_t last_sequence_ = 0;
};

TEST_F(PlacementTest, OfTwoGroupsTakesTheOneWithFewerSequences) {
  Add(Join(0));
  Join(1);
  for (uint64_t key = 0; key < 20; ++key) EXPECT_EQ(Choose(key), 1u);
}

TEST_F(PlacementTest, OfTwoGroupsTakesTheOneWithMoreFreePages) {
  Join(0, {.positions_free = 900});
  Join(1, {.positions_free = 300});
  for (uint64_t key = 0; key < 20; ++key) EXPECT_EQ(Choose(key), 0u);
}

TEST_F(PlacementTest, CountsWhatItPlacedSinceTheLastHeartbeat) {
  GroupState& first = Join(0, {.positions_free = 900});
  Join(1, {.positions_free = 850});
  placement_.AddSequence(first, SequenceId{1}, {.positions = 400}, 10, kNow);
  EXPECT_EQ(Choose(1), 1u);
  // The next report has them in its numbers.
  placement_.OnBeat(first, {.ready = true, .sequences_running = 1, .positions_free = 980}, kNow);
  EXPECT_EQ(first.positions_since, 0u);
  placement_.RemoveSequence(first, SequenceId{1}, 400, 10, /*since_beat=*/false, kNow);
  placement_.CheckInvariants();
}

TEST_F(PlacementTest, OfTwoGroupsTakesTheFasterOne) {
  Join(0, {.step_time = absl::Milliseconds(40)});
  Join(1, {.step_time = absl::Milliseconds(20)});
  for (uint64_t key = 0; key < 20; ++key) EXPECT_EQ(Choose(key), 1u);
}

TEST_F(PlacementTest, EqualKeysDrawEqually) {
  for (uint32_t g = 0; g < 100; ++g) Join(g);
  std::map<uint32_t, int> drawn;
  for (uint64_t key = 0; key < 1000; ++key) {
    EXPECT_EQ(Choose(key), Choose(key));
    ++drawn[Choose(key)];
  }
  EXPECT_GT(drawn.size(), 90u) << "all groups get their part";
}

TEST_F(PlacementTest, TwoChoicesKeepALargeFleetEven) {
  std::vector<GroupState*> groups;
  for (uint32_t g = 0; g < 200; ++g) groups.push_back(&Join(g));
  for (uint64_t key = 0; key < 1000; ++key) Add(*groups[Choose(key)]);
  uint32_t most = 0;
  for (const GroupState* group : groups) most = std::max(most, group->sequences);
  EXPECT_LE(most, 8u) << "five on average";
  placement_.CheckInvariants();
}

TEST_F(PlacementTest, TheGroupThatHoldsMoreOfThePrefixIsTaken) {
  for (uint32_t g = 0; g < 100; ++g) Join(g);
  Add(*placement_.Find(GroupId{42}), kChain);
  Add(*placement_.Find(GroupId{43}), {11, 22});
  for (uint64_t key = 0; key < 20; ++key) {
    EXPECT_EQ(Choose(key, kChain), 42u);
    EXPECT_EQ(Choose(key, {11, 22, 33, 99}), 42u) << "three runs of it";
    EXPECT_THAT(Choose(key, {11, 77}), testing::AnyOf(42u, 43u));
  }
}

TEST_F(PlacementTest, AnOverloadedGroupIsNotTakenForItsPrefix) {
  for (uint32_t g = 0; g < 100; ++g) Join(g);
  GroupState& hot = *placement_.Find(GroupId{42});
  Add(hot, kChain);
  int there = 1;
  for (uint64_t key = 0; key < 50; ++key) {
    if (Choose(key, kChain) != 42u) continue;
    Add(hot, kChain);
    ++there;
  }
  EXPECT_GE(there, 2);
  EXPECT_LE(there, 4) << "1.25 times the load of an empty one and a quarter";
}

TEST_F(PlacementTest, AGroupThatCameBackHoldsNothing) {
  for (uint32_t g = 0; g < 100; ++g) Join(g);
  GroupState& group = *placement_.Find(GroupId{42});
  Add(group, kChain);
  placement_.RemoveSequence(group, SequenceId{last_sequence_}, 10, 10, true, kNow);
  placement_.Leave(GroupId{42}, kNow);
  Join(42);
  int there = 0;
  for (uint64_t key = 0; key < 50; ++key) there += Choose(key, kChain) == 42u ? 1 : 0;
  EXPECT_LE(there, 5);
}

TEST_F(PlacementTest, FullUnreadyAndDrainingGroupsAreNotOpen) {
  GroupState& group = Join(0);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(Choose(1), 0u);
    Add(group);
  }
  EXPECT_EQ(Choose(1), ~0u);
  placement_.RemoveSequence(group, SequenceId{1}, 10, 10, true, kNow);
  EXPECT_EQ(Choose(1), 0u);
  placement_.OnBeat(group, {.ready = true, .draining = true}, kNow);
  EXPECT_EQ(Choose(1), ~0u);
  placement_.OnBeat(group, {.ready = false}, kNow);
  EXPECT_EQ(Choose(1), ~0u);
  placement_.OnBeat(group, {.ready = true}, kNow);
  EXPECT_EQ(Choose(1), 0u);
  // No page is left for a prompt; but a group that runs nothing always takes something.
  placement_.OnBeat(group, {.ready = true, .positions_free = 0}, kNow);
  EXPECT_EQ(Choose(1), ~0u);
  Join(1, {.positions_free = 0});
  EXPECT_EQ(Choose(1), 1u);
  placement_.CheckInvariants();
}

TEST_F(PlacementTest, SumsHoldUnderAnyChange) {
  std::mt19937_64 random(1);
  std::map<uint32_t, std::vector<SequenceId>> live;
  for (uint32_t g = 0; g < 8; ++g) Join(g, {}, g % 2 == 0 ? "f" : "g");
  for (int i = 0; i < 20000; ++i) {
    const auto g = static_cast<uint32_t>(random() % 8);
    GroupState* group = placement_.Find(GroupId{g});
    switch (random() % 6) {
      case 0:
        placement_.OnBeat(*group, {.ready = random() % 4 != 0, .draining = random() % 8 == 0}, kNow);
        break;
      case 1:
        group->breaker = static_cast<CircuitBreaker::State>(random() % 3);
        placement_.Refresh(*group, kNow);
        break;
      case 2:
        if (live[g].empty()) break;
        placement_.RemoveSequence(*group, live[g].back(), 10, 10, false, kNow);
        live[g].pop_back();
        break;
      case 3:
        for (const SequenceId id : live[g]) placement_.RemoveSequence(*group, id, 10, 10, false, kNow);
        live[g].clear();
        placement_.Leave(GroupId{g}, kNow);
        Join(g, {}, random() % 2 == 0 ? "f" : "g");
        break;
      default:
        group = placement_.Choose(all(), all().open, {.key = random(), .positions = 10, .prefix = kChain});
        if (group == nullptr) break;
        Add(*group, kChain);
        // As if a beat had come since.
        group->sequences_since = 0;
        live[static_cast<uint32_t>(group->connection.group)].push_back(SequenceId{last_sequence_});
    }
    placement_.CheckInvariants();
  }
}

TEST(PrefixChainTest, AgreesAsFarAsWholeRunsOfThePromptsDo) {
  std::vector<int32_t> tokens(4 * kPrefixRunTokens + 5);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * 7919);
  const auto chain = PrefixChain(tokens, "tenant");
  ASSERT_THAT(chain, SizeIs(4));
  std::vector<int32_t> other = tokens;
  other[2 * kPrefixRunTokens + 3] += 1;
  const auto other_chain = PrefixChain(other, "tenant");
  EXPECT_EQ(chain[0], other_chain[0]);
  EXPECT_EQ(chain[1], other_chain[1]);
  EXPECT_NE(chain[2], other_chain[2]);
  EXPECT_NE(chain[3], other_chain[3]) << "a chain: what comes later depends on all before";
  tokens.resize(2 * kPrefixRunTokens);
  EXPECT_THAT(PrefixChain(tokens, "tenant"), ElementsAreArray({chain[0], chain[1]}));
}

TEST(PrefixChainTest, DiffersBetweenSaltsAndIsBounded) {
  const std::vector<int32_t> tokens(100 * kPrefixRunTokens, 5);
  EXPECT_NE(PrefixChain(tokens, "a")[0], PrefixChain(tokens, "b")[0]);
  EXPECT_NE(PrefixChain(tokens, "")[0], PrefixChain(tokens, std::string(1, '\0'))[0]);
  EXPECT_THAT(PrefixChain(tokens, "a"), SizeIs(kPrefixChainMax));
  EXPECT_THAT(PrefixChain(std::vector<int32_t>(kPrefixRunTokens - 1, 5), "a"), IsEmpty());
}

TEST(PrefixIndexTest, ForgetsWhatWasNotSeenForTheLongestTime) {
  PrefixIndex index(/*sets=*/1);
  PrefixIndex::Holders holders;
  for (uint64_t hash = 1; hash <= PrefixIndex::kWays; ++hash) index.Record({hash}, 7);
  index.Record({1}, 7);
  EXPECT_EQ(index.Find(1, holders), 1u) << "seen twice, held once";
  index.Record({100}, 7);
  EXPECT_EQ(index.Find(1, holders), 1u);
  EXPECT_EQ(index.Find(2, holders), 0u);
  EXPECT_EQ(index.Find(100, holders), 1u);
  index.Record({100}, 8);
  EXPECT_EQ(index.Find(100, holders), 2u);
}

TEST(CircuitBreakerTest, OpensAtTheFifthFailureInTenMinutesAndDoublesUpToTen) {
  CircuitBreaker breaker;
  absl::Duration now = kNow;
  for (int i = 0; i < 20; ++i) {
    breaker.OnFailure(now);
    now += absl::Minutes(2.5);
    EXPECT_EQ(breaker.state(now), CircuitBreaker::State::kClosed) << "four in ten minutes are borne";
  }
  for (int i = 0; i < 2; ++i) breaker.OnFailure(now);
  EXPECT_EQ(breaker.state(now), CircuitBreaker::State::kOpen);
  absl::Duration open = absl::Seconds(60);
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(breaker.half_open_at(), now + open);
    EXPECT_EQ(breaker.state(now + open - absl::Seconds(1)), CircuitBreaker::State::kOpen);
    now += open;
    EXPECT_EQ(breaker.state(now), CircuitBreaker::State::kHalfOpen);
    breaker.OnFailure(now);
    open = std::min(2 * open, absl::Duration(absl::Minutes(10)));
  }
  EXPECT_EQ(open, absl::Minutes(10));
  breaker.OnProgress();
  EXPECT_EQ(breaker.state(now), CircuitBreaker::State::kClosed);
  breaker.OnFailure(now);
  EXPECT_EQ(breaker.state(now), CircuitBreaker::State::kClosed) << "it begins anew";
}

}  // namespace
}  // namespace quicksilver
