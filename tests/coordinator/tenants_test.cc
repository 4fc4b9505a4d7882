#include "coordinator/core/tenants.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kNow = absl::Hours(100);
constexpr TokenCounts kSmall{.input = 10, .output = 20};

TenantsOptions Options(const TenantLimits& limits) {
  TenantsOptions options;
  options.tenants["a"] = limits;
  return options;
}

TEST(RateLimitTest, AllowsAMinutesWorthAtOnceAndThenTheRate) {
  RateLimit limit(60);
  for (int i = 0; i < 60; ++i) {
    EXPECT_EQ(limit.WaitFor(1, kNow), absl::ZeroDuration());
    limit.Take(1, kNow);
  }
  EXPECT_EQ(limit.WaitFor(1, kNow), absl::Seconds(1));
  EXPECT_EQ(limit.WaitFor(5, kNow + absl::Seconds(2)), absl::Seconds(3));
  EXPECT_EQ(limit.WaitFor(1, kNow + absl::Seconds(1)), absl::ZeroDuration());
  EXPECT_EQ(limit.WaitFor(61, kNow + absl::Hours(1)), absl::InfiniteDuration());
}

TEST(RateLimitTest, SaysWhatIsLeftAndWhenAllIsBack) {
  RateLimit limit(1000);
  EXPECT_EQ(limit.Status(kNow).remaining, 1000u);
  EXPECT_EQ(limit.Status(kNow).reset, absl::ZeroDuration());
  limit.Take(250, kNow);
  EXPECT_EQ(limit.Status(kNow).remaining, 750u);
  EXPECT_EQ(limit.Status(kNow).reset, absl::Seconds(15));
  EXPECT_EQ(limit.Status(kNow + absl::Seconds(9)).remaining, 900u);
}

TEST(RateLimitTest, WhatIsGivenBackCanBeTakenAgainAndNoMore) {
  RateLimit limit(1000);
  limit.Take(1000, kNow);
  limit.GiveBack(/*taken=*/1000, /*used=*/400);
  EXPECT_EQ(limit.Status(kNow).remaining, 600u);
  EXPECT_EQ(limit.WaitFor(600, kNow), absl::ZeroDuration());
  EXPECT_GT(limit.WaitFor(601, kNow), absl::ZeroDuration());
  // Given back late, when it had come back by itself: there is still no more than a minute's worth.
  limit.GiveBack(400, 0);
  EXPECT_GT(limit.WaitFor(1001, kNow + absl::Hours(1)), absl::Hours(1));
  EXPECT_EQ(limit.Status(kNow + absl::Hours(1)).remaining, 1000u);
}

TEST(TenantsTest, AnUnknownTenantIsNotLimited) {
  Tenants tenants({}, 100);
  const TenantId id = tenants.Find("anybody", kNow);
  for (int i = 0; i < 1000; ++i) {
    ASSERT_FALSE(tenants.Refusal(id, {.input = 1 << 20, .output = 1 << 20}, kNow).has_value());
    tenants.Admit(id, {.input = 1 << 20, .output = 1 << 20}, kNow);
  }
  EXPECT_FALSE(tenants.Rates("anybody", kNow).requests.has_value());
  EXPECT_FALSE(tenants.Rates("anybody", kNow).tokens.has_value());
}

TEST(TenantsTest, RefusesBeyondTheRequestsUnderWay) {
  Tenants tenants(Options({.concurrent_requests_max = 2}), 100);
  const TenantId id = tenants.Find("a", kNow);
  tenants.Admit(id, kSmall, kNow);
  EXPECT_FALSE(tenants.Refusal(id, kSmall, kNow).has_value());
  tenants.Admit(id, kSmall, kNow);
  EXPECT_EQ(tenants.Refusal(id, kSmall, kNow)->code, "rate_limit_exceeded");
  tenants.End(id, kSmall, kSmall, false, kNow);
  EXPECT_FALSE(tenants.Refusal(id, kSmall, kNow).has_value());
}

TEST(TenantsTest, RefusesBeyondItsShareOfTheQueue) {
  Tenants tenants(Options({.queue_share_max = 0.02}), 100);
  const TenantId id = tenants.Find("a", kNow);
  tenants.EnterQueue(id);
  EXPECT_FALSE(tenants.Refusal(id, kSmall, kNow).has_value());
  tenants.EnterQueue(id);
  EXPECT_EQ(tenants.Refusal(id, kSmall, kNow)->http_status, 429);
  tenants.LeaveQueue(id);
  EXPECT_FALSE(tenants.Refusal(id, kSmall, kNow).has_value());
}

TEST(TenantsTest, SaysWhenToComeBackToTheSecond) {
  Tenants tenants(Options({.requests_per_minute = 60, .output_tokens_per_minute = 600}), 100);
  const TenantId id = tenants.Find("a", kNow);
  tenants.Admit(id, {.input = 1, .output = 600}, kNow);
  const auto error = tenants.Refusal(id, {.input = 1, .output = 105}, kNow);
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->retry_after_seconds, 11);  // 105 at 10 a second: ten and a half.
  EXPECT_FALSE(error->should_not_retry);
  EXPECT_THAT(error->message, HasSubstr("600 output tokens"));
  EXPECT_FALSE(tenants.Refusal(id, {.input = 1, .output = 105}, kNow + absl::Seconds(10.5)).has_value());
}

TEST(TenantsTest, ARequestAboveAWholeMinutesLimitNeedNotBeTriedAgain) {
  Tenants tenants(Options({.input_tokens_per_minute = 100}), 100);
  const auto error = tenants.Refusal(tenants.Find("a", kNow), {.input = 101, .output = 0}, kNow);
  ASSERT_TRUE(error.has_value());
  EXPECT_TRUE(error->should_not_retry);
}

TEST(TenantsTest, TheDailyQuotaCountsWhatIsReservedAndBeginsAnewAtMidnight) {
  TenantsOptions options = Options({.tokens_per_day = 100});
  options.midnight = absl::Hours(3);  // So days begin at 3, 27, 51, 75, 99 hours.
  Tenants tenants(options, 100);
  const TenantId id = tenants.Find("a", kNow);
  tenants.Admit(id, {.input = 40, .output = 40}, kNow);
  const auto error = tenants.Refusal(id, {.input = 10, .output = 11}, kNow);
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code, "insufficient_quota");
  EXPECT_EQ(error->http_status, 429);
  EXPECT_TRUE(error->should_not_retry);
  EXPECT_FALSE(tenants.Refusal(id, {.input = 10, .output = 10}, kNow).has_value());
  tenants.End(id, {.input = 40, .output = 40}, {.input = 40, .output = 5}, false, kNow);
  EXPECT_FALSE(tenants.Refusal(id, {.input = 50, .output = 5}, kNow).has_value());
  EXPECT_TRUE(tenants.Refusal(id, {.input = 50, .output = 6}, kNow).has_value());
  EXPECT_TRUE(tenants.Refusal(id, {.input = 50, .output = 6}, absl::Hours(122.9)).has_value());
  EXPECT_FALSE(tenants.Refusal(id, {.input = 90, .output = 10}, absl::Hours(123)).has_value());
}

TEST(TenantsTest, ARequestThatWasTurnedAwayDoesNotCountAtAll) {
  Tenants tenants(Options({.requests_per_minute = 1, .input_tokens_per_minute = 10}), 100);
  const TenantId id = tenants.Find("a", kNow);
  tenants.Admit(id, kSmall, kNow);
  tenants.End(id, kSmall, {}, /*turned_away=*/true, kNow);
  EXPECT_EQ(tenants.Rates("a", kNow).requests->remaining, 1u);
  EXPECT_EQ(tenants.Rates("a", kNow).tokens->remaining, 10u);
  tenants.Admit(id, kSmall, kNow);
  tenants.End(id, kSmall, kSmall, /*turned_away=*/false, kNow);
  EXPECT_EQ(tenants.Rates("a", kNow).requests->remaining, 0u);
  EXPECT_EQ(tenants.Rates("a", kNow).tokens->remaining, 0u);
}

// Two hundred requests at the last thousand tokens: what is admitted never exceeds the limit, and what is counted in
// the end is what was used.
TEST(TenantsTest, ReservationsNeverOvershootAndRefundsAreExact) {
  Tenants tenants(Options({.output_tokens_per_minute = 1000, .tokens_per_day = 100000}), 1000);
  const TenantId id = tenants.Find("a", kNow);
  std::mt19937_64 random(1);
  std::vector<TokenCounts> live;
  uint64_t output_used = 0, reserved = 0;
  for (int i = 0; i < 200; ++i) {
    const TokenCounts tokens{.input = 1 + random() % 50, .output = 1 + random() % 50};
    if (tenants.Refusal(id, tokens, kNow).has_value()) continue;
    tenants.Admit(id, tokens, kNow);
    reserved += tokens.output;
    EXPECT_LE(reserved, 1000u);
    live.push_back(tokens);
  }
  EXPECT_GT(reserved, 950u);
  uint64_t input_used = 0;
  for (const TokenCounts& tokens : live) {
    const TokenCounts used{.input = tokens.input, .output = random() % (tokens.output + 1)};
    tenants.End(id, tokens, used, false, kNow);
    input_used += used.input;
    output_used += used.output;
  }
  const TenantUsage usage = tenants.Usage("a");
  EXPECT_EQ(usage.used.input, input_used);
  EXPECT_EQ(usage.used.output, output_used);
  EXPECT_EQ(usage.reserved.input + usage.reserved.output, 0u);
  EXPECT_EQ(usage.requests, 0u);
  EXPECT_NEAR(static_cast<double>(tenants.Rates("a", kNow).tokens->remaining), static_cast<double>(1000 - output_used),
              1);
}

TEST(TenantsTest, UnknownTenantsAreBoundedAndAnIdleOneMakesRoom) {
  TenantsOptions options;
  options.unknown_max = 10;
  Tenants tenants(options, 100);
  for (int i = 0; i < 10; ++i) tenants.Admit(tenants.Find(absl::StrCat("busy ", i), kNow), kSmall, kNow);
  const TenantId shared = tenants.Find("one more", kNow);
  EXPECT_EQ(tenants.Find("and another", kNow), shared) << "they share one";
  EXPECT_EQ(tenants.followed(), 11u);

  tenants.End(tenants.Find("busy 4", kNow), kSmall, kSmall, false, kNow);
  TenantId found = shared;
  for (int i = 0; i < 2 && found == shared; ++i) found = tenants.Find("one more", kNow);
  EXPECT_NE(found, shared);
  EXPECT_EQ(tenants.followed(), 11u);
  EXPECT_EQ(tenants.Usage("busy 5").requests, 1u);
}

// Else a tenant could shed its debts by bringing in many other names.
TEST(TenantsTest, ATenantIsForgottenWhenItOwesNothingAndNotBefore) {
  TenantsOptions options;
  options.unknown_max = 2;
  options.unknown.requests_per_minute = 1;
  options.unknown.tokens_per_day = 100;
  Tenants tenants(options, 100);
  const auto serve = [&](const std::string& name, absl::Duration now) {
    const TenantId id = tenants.Find(name, now);
    tenants.Admit(id, kSmall, now);
    tenants.End(id, kSmall, kSmall, false, now);
    return id;
  };
  const auto bring_others = [&](absl::Duration now) {
    for (int i = 0; i < 10; ++i) tenants.Find(absl::StrCat("other ", i), now);
  };
  const TenantId first = serve("first", kNow);
  bring_others(kNow);
  EXPECT_EQ(tenants.Find("first", kNow), first);
  EXPECT_TRUE(tenants.Refusal(first, kSmall, kNow).has_value());
  const absl::Duration rate_back = kNow + absl::Minutes(2);
  bring_others(rate_back);
  EXPECT_EQ(tenants.Find("first", rate_back), first) << "it has used some of its day's tokens";
  const absl::Duration tomorrow = kNow + absl::Hours(24);
  bring_others(tomorrow);
  EXPECT_NE(tenants.Find("first", tomorrow), first);
}

TEST(TenantsTest, AnIdIsNeverThatOfAnotherTenant) {
  TenantsOptions options;
  options.unknown_max = 2;
  Tenants tenants(options, 100);
  std::set<TenantId> ids;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(ids.insert(tenants.Find(absl::StrCat("tenant ", i), kNow)).second) << i;
  EXPECT_EQ(tenants.followed(), 3u);
}

TEST(TenantsTest, WhoSharesALimitIsToldWhatIsLeftOfIt) {
  TenantsOptions options;
  options.unknown_max = 0;
  options.unknown.requests_per_minute = 5;
  Tenants tenants(options, 100);
  tenants.Admit(tenants.Find("one", kNow), kSmall, kNow);
  EXPECT_EQ(tenants.Rates("another", kNow).requests->remaining, 4u);
}

}  // namespace
}  // namespace quicksilver
