#include "worker/engine/prefix_cache.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace quicksilver {
namespace {

constexpr uint64_t kSeed = 0x9E3779B97F4A7C15u;

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9FB21C651E98DF25u;
  return hash ^ (hash >> 32);
}

}  // namespace

// Lanes that do not wait for one another, two tokens at a time.
uint64_t HashPage(uint64_t before, absl::Span<const TokenId> tokens) {
  constexpr size_t kLanes = 4;
  uint64_t lanes[kLanes];
  for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = Mix(kSeed * (lane + 1), before);
  const auto token = [&](size_t i) -> uint64_t { return static_cast<uint32_t>(tokens[i]); };
  size_t i = 0;
  for (; i + 2 * kLanes <= tokens.size(); i += 2 * kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = Mix(lanes[lane], token(i + 2 * lane) << 32 | token(i + 2 * lane + 1));
    }
  }
  for (; i < tokens.size(); ++i) lanes[0] = Mix(lanes[0], token(i));
  for (size_t lane = 1; lane < kLanes; ++lane) lanes[0] = Mix(lanes[0], lanes[lane]);
  return Mix(lanes[0], tokens.size());
}

PrefixCache::PrefixCache(PagePool& pool, int32_t page_size, PageHash hash)
    : pool_(pool),
      page_size_(page_size),
      hash_(hash),
      entries_(static_cast<size_t>(pool.total())),
      tokens_(static_cast<size_t>(pool.total()) * static_cast<size_t>(page_size)) {}

uint64_t PrefixCache::HashOf(int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens) const {
  CHECK(static_cast<int32_t>(tokens.size()) == page_size_);
  uint64_t before = salt.size();
  if (parent != kNone) {
    before = At(parent).hash;
  } else {
    for (const char c : salt) before = Mix(before, static_cast<uint8_t>(c));
  }
  return hash_(before, tokens);
}

bool PrefixCache::Holds(int32_t page, int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens) const {
  const Entry& entry = At(page);
  if (entry.parent != parent || (parent == kNone && entry.salt != salt)) return false;
  return std::equal(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{page} * page_size_);
}

int32_t PrefixCache::Find(int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens) const {
  const auto found = pages_by_hash_.find(HashOf(parent, salt, tokens));
  return found != pages_by_hash_.end() && Holds(found->second, parent, salt, tokens) ? found->second : kNone;
}

void PrefixCache::Acquire(int32_t page) {
  Entry& entry = At(page);
  CHECK(entry.present);
  CHECK(entry.parent == kNone || pool_.owners(entry.parent) > pool_.owners(page));
  if (Evictable(page)) evictable_.erase({entry.last_use, page});
  pool_.Share(page);
}

void PrefixCache::Release(int32_t page, uint64_t now) {
  Entry& entry = At(page);
  CHECK(entry.present && now >= entry.last_use);
  entry.last_use = now;
  pool_.Drop(page);
  if (!Evictable(page)) return;
  if (entry.banned) {
    GiveUp(page);
  } else {
    evictable_.insert({now, page});
  }
}

int32_t PrefixCache::Offer(int32_t parent, const std::string& salt, absl::Span<const TokenId> tokens, int32_t page) {
  if (parent != kNone && At(parent).banned) return kNone;
  const uint64_t hash = HashOf(parent, salt, tokens);
  const auto [place, inserted] = pages_by_hash_.try_emplace(hash, page);
  if (!inserted) return Holds(place->second, parent, salt, tokens) ? place->second : kNone;
  Entry& entry = At(page);
  CHECK(!entry.present);
  entry.hash = hash;
  entry.parent = parent;
  entry.present = true;
  if (parent == kNone) {
    entry.salt = salt;
  } else {
    ++At(parent).children;
  }
  std::copy(tokens.begin(), tokens.end(), tokens_.begin() + int64_t{page} * page_size_);
  pool_.Keep(page);
  return page;
}

// What goes on after it cannot be reached any more, and is given up in its turn.
void PrefixCache::Ban(int32_t page) {
  Entry& entry = At(page);
  CHECK(entry.present);
  if (entry.banned) return;
  entry.banned = true;
  pages_by_hash_.erase(entry.hash);
  if (!Evictable(page)) return;
  evictable_.erase({entry.last_use, page});
  GiveUp(page);
}

bool PrefixCache::Evict() {
  if (evictable_.empty()) return false;
  const int32_t page = evictable_.begin()->second;
  evictable_.erase(evictable_.begin());
  ++evictions_;
  GiveUp(page);
  return true;
}

// Requires: Evictable(page), and out of the list. Banned parents go with their last child.
void PrefixCache::GiveUp(int32_t page) {
  while (true) {
    const Entry gone = std::exchange(At(page), Entry());
    if (!gone.banned) pages_by_hash_.erase(gone.hash);
    pool_.Unkeep(page);
    page = gone.parent;
    if (page == kNone) return;
    --At(page).children;
    if (!Evictable(page)) return;
    if (!At(page).banned) {
      evictable_.insert({At(page).last_use, page});
      return;
    }
  }
}

void PrefixCache::Check() const {
  std::vector<int32_t> children(entries_.size(), 0);
  size_t evictable = 0, reachable = 0;
  for (int32_t page = 0; page < pool_.total(); ++page) {
    const Entry& entry = At(page);
    CHECK(entry.present == pool_.kept(page));
    if (!entry.present) continue;
    if (!entry.banned) {
      ++reachable;
      const auto found = pages_by_hash_.find(entry.hash);
      CHECK(found != pages_by_hash_.end() && found->second == page);
    }
    if (Evictable(page)) {
      ++evictable;
      CHECK(evictable_.contains({entry.last_use, page}));
    }
    if (entry.parent == kNone) continue;
    ++children[static_cast<size_t>(entry.parent)];
    CHECK(At(entry.parent).present && pool_.owners(entry.parent) >= pool_.owners(page));
  }
  CHECK(evictable == evictable_.size() && reachable == pages_by_hash_.size());
  for (size_t page = 0; page < entries_.size(); ++page) CHECK(children[page] == entries_[page].children);
}

}  // namespace quicksilver
