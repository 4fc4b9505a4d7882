#include "worker/engine/fair_shares.h"

#include <string>

#include "gtest/gtest.h"

namespace quicksilver {
namespace {

TEST(FairSharesTest, RowsCountOnlyWhenSomebodyMissesSome) {
  FairShares shares;
  const int32_t a = shares.Join("a"), b = shares.Join("b");
  shares.Charge(a, 100);
  shares.Settle();
  EXPECT_EQ(shares.lead(a), 0u);
  shares.Charge(a, 100);
  shares.Miss(b);
  shares.Settle();
  EXPECT_EQ(shares.lead(a), 100u);
  EXPECT_EQ(shares.lead(b), 0u);
}

TEST(FairSharesTest, WhoWantsLittleGathersNoClaim) {
  FairShares shares;
  const int32_t modest = shares.Join("modest"), greedy = shares.Join("greedy");
  for (int i = 0; i < 1000; ++i) {
    shares.Charge(modest, 1);
    shares.Charge(greedy, 100);
    shares.Miss(greedy);
    shares.Settle();
  }
  EXPECT_EQ(shares.lead(modest), shares.lead(greedy));
}

TEST(FairSharesTest, ANewTenantStartsLevelWithTheOneThatHadLeast) {
  FairShares shares;
  const int32_t a = shares.Join("a"), b = shares.Join("b");
  shares.Charge(a, 500);
  shares.Charge(b, 300);
  shares.Miss(a);
  shares.Miss(b);
  shares.Settle();
  const int32_t c = shares.Join("c");
  EXPECT_EQ(shares.lead(c), 0u);
  EXPECT_EQ(shares.lead(b), 0u);
  EXPECT_EQ(shares.lead(a), 200u);
}

TEST(FairSharesTest, LeavingAndComingBackClearsNoDebt) {
  FairShares shares;
  const int32_t a = shares.Join("a"), b = shares.Join("b");
  shares.Charge(a, 500);
  shares.Miss(b);
  shares.Settle();
  shares.Leave(a);
  EXPECT_EQ(shares.tenants(), 1);
  shares.Join("c");
  EXPECT_EQ(shares.lead(shares.Join("a")), 500u);
}

TEST(FairSharesTest, TenantsThatAreGoneAndOweNothingAreForgotten) {
  FairShares shares;
  for (int i = 0; i < 100; ++i) shares.Leave(shares.Join(std::to_string(i)));
  EXPECT_LE(shares.shares_max(), 2);
  EXPECT_EQ(shares.tenants(), 0);
}

// One waits and is never served, so nobody's debt ends.
TEST(FairSharesTest, OfManyThatAreGoneThoseWithTheMostRowsAreRemembered) {
  FairShares shares, same;
  for (FairShares* const each : {&shares, &same}) {
    const int32_t starved = each->Join("starved");
    const auto come_and_go = [&](const std::string& tenant, int32_t rows) {
      const int32_t share = each->Join(tenant);
      each->Charge(share, rows);
      each->Miss(starved);
      each->Settle();
      each->Leave(share);
    };
    come_and_go("greedy", 5000);
    for (int i = 0; i < 3000; ++i) come_and_go(std::to_string(i), 10 + i % 7);
  }
  EXPECT_EQ(shares.shares_max(), FairShares::kGoneMax + 2) << "those, the one that waits, and one that comes";
  EXPECT_EQ(shares.lead(shares.Join("greedy")), 5000u);
  for (int i = 0; i < 3000; ++i) {
    const int32_t share = shares.Join(std::to_string(i));
    ASSERT_EQ(same.Join(std::to_string(i)), share) << "equal calls";
    ASSERT_TRUE(shares.lead(share) == 0 || shares.lead(share) == 16) << i << ": " << shares.lead(share);
  }
}

}  // namespace
}  // namespace quicksilver
