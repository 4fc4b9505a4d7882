#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "kernels/policy/merge_candidates.h"
#include "worker/engine/page_pool.h"

namespace quicksilver {

/// A hash of a page's tokens and of all before it (`before`).
using PageHash = uint64_t (*)(uint64_t before, absl::Span<const TokenId> tokens);
uint64_t HashPage(uint64_t before, absl::Span<const TokenId> tokens);

/// Which pages of a pool hold the KV of which token runs. Pure and deterministic.
///
/// Pages form trees: each goes on where its parent ends, first ones begin at position 0 under a salt. A page is found
/// by its hash, and what is found is compared: parent, tokens and salt. Equal hashes of different runs cost a miss,
/// never a wrong page. A parent has at least the owners of its children, so pages without owners can be given up from
/// the leaves on, least recently used first.
class PrefixCache {
 public:
  static constexpr int32_t kNone = -1;

  /// `pool` outlives it. `hash` is for tests that want collisions.
  PrefixCache(PagePool& pool, int32_t page_size, PageHash hash = HashPage);

  /// The page with these `page_size` tokens that goes on after `parent` (kNone: the first one, under `salt`), or kNone.
  int32_t Find(int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens) const;
  /// One more owner of a page that Find() returned. A page's owner owns its parent, too.
  void Acquire(int32_t page);
  /// One owner less of a page that is in the cache, at time `now` (any count that does not descend).
  void Release(int32_t page, uint64_t now);

  /// Offers `page`, which has one owner, whose KV is computed and which is written no more. Returns the page that holds
  /// these tokens from now on: `page`, or one that was there before, in whose place `page` is not kept. kNone: it
  /// cannot be shared, because its hash is taken or its parent is banned.
  int32_t Offer(int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens, int32_t page);
  /// Finds `page`, and what goes on after it, no more.
  void Ban(int32_t page);

  /// Gives up the cached page that was used least recently among those nothing goes on after. False: none is cached.
  bool Evict();
  uint64_t evictions() const { return evictions_; }

  /// Aborts when the trees, the pool and the list of what may be given up disagree. Takes time in the pages.
  void Check() const;

 private:
  struct Entry {
    uint64_t hash = 0;
    uint64_t last_use = 0;
    int32_t parent = kNone;
    int32_t children = 0;
    bool present = false;
    bool banned = false;
    std::string salt;  // Of a first page.
  };

  uint64_t HashOf(int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens) const;
  bool Holds(int32_t page, int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens) const;
  Entry& At(int32_t page) { return entries_[static_cast<size_t>(page)]; }
  const Entry& At(int32_t page) const { return entries_[static_cast<size_t>(page)]; }
  bool Evictable(int32_t page) const { return pool_.owners(page) == 0 && At(page).children == 0; }
  void GiveUp(int32_t page);

  PagePool& pool_;
  const int32_t page_size_;
  const PageHash hash_;
  std::vector<Entry> entries_;   // By page.
  std::vector<TokenId> tokens_;  // [pages, page_size]
  absl::flat_hash_map<uint64_t, int32_t> pages_by_hash_;
  std::set<std::pair<uint64_t, int32_t>> evictable_;  // Last use and page.
  uint64_t evictions_ = 0;
};

}  // namespace quicksilver
