#include "worker/engine/prefix_cache.h"

#include <vector>

#include "gtest/gtest.h"

namespace quicksilver {
namespace {

constexpr int32_t kNone = PrefixCache::kNone;

struct Cache {
  explicit Cache(int32_t pages, PageHash hash = HashPage) : pool(pages), cache(pool, 2, hash) {}

  /// A new page with these tokens, owned once; what the cache has instead when it has them.
  int32_t Put(int32_t parent, std::vector<TokenId> tokens, const std::string& salt = "s") {
    return cache.Offer(parent, salt, tokens, pool.Take());
  }
  int32_t Find(int32_t parent, std::vector<TokenId> tokens, const std::string& salt = "s") {
    return cache.Find(parent, salt, tokens);
  }

  PagePool pool;
  PrefixCache cache;
};

TEST(PrefixCacheTest, APageIsFoundByItsTokensItsParentAndItsSalt) {
  Cache c(8);
  const int32_t root = c.Put(kNone, {1, 2});
  const int32_t child = c.Put(root, {3, 4});
  EXPECT_EQ(c.Find(kNone, {1, 2}), root);
  EXPECT_EQ(c.Find(root, {3, 4}), child);
  EXPECT_EQ(c.Find(kNone, {3, 4}), kNone);
  EXPECT_EQ(c.Find(child, {3, 4}), kNone);
  EXPECT_EQ(c.Find(root, {3, 5}), kNone);
  EXPECT_EQ(c.Find(kNone, {1, 2}, "t"), kNone);
  c.cache.Check();
}

TEST(PrefixCacheTest, TheFirstOfEqualPagesIsKept) {
  Cache c(8);
  const int32_t first = c.Put(kNone, {1, 2});
  const int32_t page = c.pool.Take();
  EXPECT_EQ(c.cache.Offer(kNone, "s", std::vector<TokenId>{1, 2}, page), first);
  EXPECT_FALSE(c.pool.kept(page));
}

TEST(PrefixCacheTest, EqualHashesAreToldApart) {
  Cache c(8, [](uint64_t, absl::Span<const TokenId>) -> uint64_t { return 1; });
  const int32_t root = c.Put(kNone, {1, 2});
  EXPECT_EQ(c.Put(kNone, {3, 4}), kNone) << "its hash is taken";
  EXPECT_EQ(c.Put(root, {1, 2}), kNone) << "so is that of the same tokens elsewhere";
  EXPECT_EQ(c.Put(kNone, {1, 2}, "t"), kNone) << "and under another salt";
  EXPECT_EQ(c.Find(kNone, {3, 4}), kNone);
  EXPECT_EQ(c.Find(root, {1, 2}), kNone);
  EXPECT_EQ(c.Find(kNone, {1, 2}, "t"), kNone);
  EXPECT_EQ(c.Find(kNone, {1, 2}), root);
}

TEST(PrefixCacheTest, TheLeastRecentlyUsedLeafIsGivenUpFirst) {
  Cache c(8);
  const int32_t root = c.Put(kNone, {1, 1}), left = c.Put(root, {2, 2});
  c.pool.Share(root);
  const int32_t right = c.Put(root, {3, 3});
  c.cache.Release(right, 5);
  c.cache.Release(root, 5);
  c.cache.Release(left, 6);
  c.cache.Release(root, 6);
  EXPECT_EQ(c.pool.cached(), 3);
  EXPECT_TRUE(c.cache.Evict());
  EXPECT_EQ(c.Find(root, {3, 3}), kNone);
  EXPECT_EQ(c.Find(root, {2, 2}), left);
  EXPECT_TRUE(c.cache.Evict());
  EXPECT_EQ(c.Find(kNone, {1, 1}), root) << "the parent goes after its children";
  EXPECT_TRUE(c.cache.Evict());
  EXPECT_EQ(c.pool.free(), 8);
  EXPECT_FALSE(c.cache.Evict());
  EXPECT_EQ(c.cache.evictions(), 3u);
  c.cache.Check();
}

TEST(PrefixCacheTest, WhatIsUsedAgainStays) {
  Cache c(8);
  const int32_t old = c.Put(kNone, {1, 1}), young = c.Put(kNone, {2, 2});
  c.cache.Release(old, 1);
  c.cache.Release(young, 2);
  c.cache.Acquire(old);
  EXPECT_TRUE(c.cache.Evict());
  EXPECT_EQ(c.Find(kNone, {2, 2}), kNone);
  EXPECT_FALSE(c.cache.Evict()) << "what has an owner is not given up";
  c.cache.Release(old, 3);
  EXPECT_EQ(c.Find(kNone, {1, 1}), old);
  c.cache.Check();
}

TEST(PrefixCacheTest, ABannedPageIsNotFoundAndLeavesWithItsOwners) {
  Cache c(8);
  const int32_t root = c.Put(kNone, {1, 1}), child = c.Put(root, {2, 2});
  c.cache.Ban(root);
  EXPECT_EQ(c.Find(kNone, {1, 1}), kNone);
  EXPECT_EQ(c.Put(root, {3, 3}), kNone) << "nothing goes on after it";
  c.cache.Release(child, 1);
  c.cache.Release(root, 1);
  EXPECT_EQ(c.pool.cached(), 2);
  c.cache.Check();
  EXPECT_TRUE(c.cache.Evict());
  EXPECT_EQ(c.pool.cached(), 0) << "the child took it along";
  c.cache.Check();
}

TEST(PrefixCacheTest, HashesDependOnEveryTokenAndOnWhatIsBefore) {
  const std::vector<TokenId> tokens = {1, 2, 3};
  const uint64_t hash = HashPage(5, tokens);
  EXPECT_NE(HashPage(6, tokens), hash);
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::vector<TokenId> other = tokens;
    ++other[i];
    EXPECT_NE(HashPage(5, other), hash);
  }
  EXPECT_NE(HashPage(5, std::vector<TokenId>{2, 1, 3}), hash);
}

}  // namespace
}  // namespace quicksilver
