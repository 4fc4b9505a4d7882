#include "worker/engine/page_pool.h"

#include <set>

#include "gtest/gtest.h"

namespace quicksilver {
namespace {

TEST(PagePoolTest, GivesEveryPageOnceAndTakesItBack) {
  PagePool pool(4);
  std::set<int32_t> pages;
  for (int i = 0; i < 4; ++i) pages.insert(pool.Take());
  EXPECT_EQ(pages, (std::set<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(pool.free(), 0);
  EXPECT_EQ(pool.used(), 4);
  for (const int32_t page : pages) pool.Drop(page);
  EXPECT_EQ(pool.free(), 4);
  EXPECT_EQ(pool.owners(), 0);
  pool.Check();
}

TEST(PagePoolTest, AKeptPageOutlivesItsOwners) {
  PagePool pool(2);
  const int32_t page = pool.Take();
  pool.Keep(page);
  pool.Share(page);
  EXPECT_EQ(pool.owners(page), 2);
  pool.Drop(page);
  pool.Drop(page);
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_EQ(pool.free(), 1);
  pool.Share(page);
  EXPECT_EQ(pool.used(), 1);
  EXPECT_EQ(pool.cached(), 0);
  pool.Drop(page);
  pool.Unkeep(page);
  EXPECT_EQ(pool.free(), 2);
  pool.Check();
}

TEST(PagePoolDeathTest, WhatWouldBreakTheCountsAborts) {
  PagePool pool(4);
  const int32_t page = pool.Take();
  EXPECT_DEATH(pool.Share(page), "CHECK failed") << "only kept pages have several owners";
  pool.Drop(page);
  EXPECT_DEATH(pool.Drop(page), "CHECK failed");
  EXPECT_DEATH(pool.Keep(page), "CHECK failed");
  EXPECT_DEATH(pool.Drop(4), "CHECK failed");
  for (int i = 0; i < 4; ++i) pool.Take();
  EXPECT_DEATH(pool.Take(), "CHECK failed");
}

}  // namespace
}  // namespace quicksilver
