#include "coordinator/core/fair_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

constexpr TenantId kA{1}, kB{2};

class FairQueueTest : public testing::Test {
 protected:
  void Push(uint64_t id, TenantId tenant, double cost = 1, double weight = 1, Priority priority = Priority::kDefault,
            absl::Duration deadline = absl::Hours(1)) {
    queue_.Push({.id = RequestId{id},
                 .priority = priority,
                 .tenant = tenant,
                 .weight = weight,
                 .cost = cost,
                 .deadline = deadline,
                 .since = now_});
  }
  uint64_t Serve() {
    const RequestId id = queue_.Next();
    queue_.Pop(id);
    return static_cast<uint64_t>(id);
  }
  std::vector<uint64_t> ServeAll() {
    std::vector<uint64_t> order;
    while (!queue_.empty()) order.push_back(Serve());
    return order;
  }

  absl::Duration now_ = absl::Seconds(100);
  FairQueue queue_{absl::Seconds(10)};
};

TEST_F(FairQueueTest, ServesATenantByDeadlineThenByArrival) {
  Push(1, kA);
  Push(2, kA);
  Push(3, kA, 1, 1, Priority::kDefault, absl::Minutes(1));
  EXPECT_THAT(ServeAll(), ElementsAre(3, 1, 2));
}

TEST_F(FairQueueTest, TenantsTakeTurnsHoweverManyRequestsOneHas) {
  for (uint64_t id = 1; id <= 4; ++id) Push(id, kA);
  for (uint64_t id = 11; id <= 12; ++id) Push(id, kB);
  EXPECT_THAT(ServeAll(), ElementsAre(1, 11, 2, 12, 3, 4));
}

TEST_F(FairQueueTest, AHeavierWeightAndASmallerCostGetMoreTurns) {
  for (uint64_t id = 1; id <= 8; ++id) Push(id, kA, /*cost=*/1, /*weight=*/3);
  for (uint64_t id = 11; id <= 18; ++id) Push(id, kB, /*cost=*/1, /*weight=*/1);
  int a = 0;
  for (int i = 0; i < 8; ++i) a += Serve() < 10 ? 1 : 0;
  EXPECT_EQ(a, 6);
}

TEST_F(FairQueueTest, ATenantThatComesLateOwesNothingAndIsOwedNothing) {
  for (uint64_t id = 1; id <= 20; ++id) Push(id, kA);
  for (int i = 0; i < 10; ++i) Serve();
  for (uint64_t id = 101; id <= 110; ++id) Push(id, kB);
  int b = 0;
  for (int i = 0; i < 10; ++i) b += Serve() > 100 ? 1 : 0;
  EXPECT_EQ(b, 5) << "from now on they take turns";
}

// Coming and going must not wash away what a tenant has just been given.
TEST_F(FairQueueTest, ATenantWithOneRequestAtATimeGetsItsTurnAndNotMore) {
  for (uint64_t id = 1; id <= 20; ++id) Push(id, kA);
  Push(100, kB);
  uint64_t next = 101;
  int b = 0;
  for (int i = 0; i < 10; ++i) {
    if (Serve() < 100) continue;
    ++b;
    Push(next++, kB);
  }
  EXPECT_EQ(b, 5);
}

TEST_F(FairQueueTest, ForgetsATenantOnceTheOthersHaveCaughtUp) {
  for (uint64_t id = 1; id <= 20; ++id) Push(id, kA);
  for (uint64_t i = 0; i < 5; ++i) {
    Push(100 + i, TenantId{10 + i}, /*cost=*/3);
    while (Serve() < 100) {
    }
    EXPECT_EQ(queue_.tenants(), 2u) << "it still owes";
    for (int k = 0; k < 3; ++k) Serve();
    EXPECT_EQ(queue_.tenants(), 1u) << "no more";
  }
}

TEST_F(FairQueueTest, HigherClassesGoFirst) {
  Push(1, kA, 1, 1, Priority::kBatch);
  Push(2, kA, 1, 1, Priority::kDefault);
  Push(3, kA, 1, 1, Priority::kInteractive);
  EXPECT_THAT(ServeAll(), ElementsAre(3, 2, 1));
}

TEST_F(FairQueueTest, ARequestThatHasWaitedForTheAgeingGoesBeforeAHigherClass) {
  Push(1, kA, 1, 1, Priority::kBatch);
  now_ += absl::Seconds(9.9);
  Push(2, kA, 1, 1, Priority::kDefault);
  EXPECT_EQ(queue_.Next(), RequestId{2});
  EXPECT_EQ(Serve(), 2u);
  now_ += absl::Seconds(0.2);
  Push(3, kA, 1, 1, Priority::kDefault);
  EXPECT_EQ(queue_.Next(), RequestId{1});
  Push(4, kA, 1, 1, Priority::kInteractive);
  EXPECT_EQ(queue_.Next(), RequestId{4}) << "two classes take twice the ageing";
}

TEST_F(FairQueueTest, WhoLeavesUnservedIsNotCharged) {
  for (uint64_t id = 1; id <= 4; ++id) Push(id, kA, /*cost=*/100);
  Push(11, kB);
  queue_.Remove(RequestId{1});
  queue_.Remove(RequestId{2});
  EXPECT_EQ(queue_.size(), 3u);
  EXPECT_THAT(queue_.Requests(), ElementsAre(RequestId{3}, RequestId{4}, RequestId{11}));
  EXPECT_EQ(Serve(), 3u);
}

// The bound of start-time fair queueing: while both wait, the shares of two tenants, by weight, never differ by more
// than one largest request of each.
TEST_F(FairQueueTest, SharesNeverDifferByMoreThanOneLargestRequestOfEach) {
  std::mt19937_64 random(1);
  std::map<TenantId, double> weights = {{TenantId{1}, 1.0}, {TenantId{2}, 2.5}, {TenantId{3}, 7.0}};
  std::map<uint64_t, std::pair<TenantId, double>> pushed;
  uint64_t id = 0;
  constexpr double kCostMax = 100;
  const auto push = [&](TenantId tenant) {
    const double cost = 1 + static_cast<double>(random() % 100) * (kCostMax - 1) / 99;
    pushed[++id] = {tenant, cost};
    Push(id, tenant, cost, weights[tenant]);
  };
  for (const auto& [tenant, weight] : weights) {
    for (int i = 0; i < 3; ++i) push(tenant);
  }
  std::map<TenantId, double> shares;
  for (int i = 0; i < 20000; ++i) {
    const auto [tenant, cost] = pushed.at(Serve());
    shares[tenant] += cost / weights[tenant];
    push(tenant);  // All of them always wait.
    for (const auto& [one, share_one] : shares) {
      for (const auto& [other, share_other] : shares) {
        ASSERT_LE(share_one - share_other, kCostMax / weights[one] + kCostMax / weights[other]);
      }
    }
  }
}

}  // namespace
}  // namespace quicksilver
