#include "coordinator/core/prefix_index.h"

#include "common/check.h"

namespace quicksilver {

PrefixIndex::PrefixIndex(size_t sets) : sets_(sets) { CHECK(sets > 0 && (sets & (sets - 1)) == 0); }

void PrefixIndex::Record(absl::Span<const uint64_t> chain, Holder holder) {
  ++now_;
  for (const uint64_t hash : chain) {
    Set& set = sets_[hash & (sets_.size() - 1)];
    Way* oldest = &set.ways[0];
    for (Way& way : set.ways) {
      if (way.holder == holder && way.hash == hash) {
        oldest = &way;
        break;
      }
      if (way.holder == 0 || now_ - way.seen > now_ - oldest->seen) oldest = &way;
      if (way.holder == 0) break;
    }
    *oldest = {hash, holder, now_};
  }
}

size_t PrefixIndex::Find(uint64_t hash, Holders& holders) const {
  size_t found = 0;
  for (const Way& way : sets_[hash & (sets_.size() - 1)].ways) {
    if (way.hash == hash && way.holder != 0) holders[found++] = way.holder;
  }
  return found;
}

}  // namespace quicksilver
