#include "coordinator/text/bpe.h"

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

constexpr size_t kWordBytesMax = 1 << 30;  // Positions are int32.

}  // namespace

absl::Status TooManyIds(size_t ids_max) {
  return absl::ResourceExhaustedError(absl::StrCat("the text has more than ", ids_max, " tokens"));
}

Bpe::Bpe(Tables tables)
    : byte_ids_(tables.byte_ids),
      whole_words_(std::move(tables.whole_words)),
      token_bytes_max_(tables.token_bytes_max) {
  merges_.reserve(tables.merges.size());
  for (size_t rank = 0; rank < tables.merges.size(); ++rank) {
    const Merge& merge = tables.merges[rank];
    merges_[Key(merge.left, merge.right)] = {static_cast<uint32_t>(rank), merge.joined};
  }
}

absl::Status Bpe::Encode(std::string_view word, size_t ids_max, Scratch& scratch, std::vector<int32_t>& ids) const {
  const size_t ids_left = ids_max - std::min(ids_max, ids.size());
  if (word.size() > kWordBytesMax || word.size() / token_bytes_max_ > ids_left) return TooManyIds(ids_max);
  if (!whole_words_.empty()) {
    const auto found = whole_words_.find(absl::string_view(word.data(), word.size()));
    if (found != whole_words_.end()) {
      if (ids_left == 0) return TooManyIds(ids_max);
      ids.push_back(found->second);
      return absl::OkStatus();
    }
  }
  scratch.symbols.clear();
  const int32_t count = static_cast<int32_t>(word.size());
  for (int32_t i = 0; i < count; ++i) {
    scratch.symbols.push_back({byte_ids_[static_cast<uint8_t>(word[i])], i - 1, i + 1 < count ? i + 1 : -1});
  }
  MergeAll(scratch);
  for (int32_t i = 0; i >= 0 && i < count; i = scratch.symbols[i].next) {
    if (ids.size() >= ids_max) return TooManyIds(ids_max);
    ids.push_back(scratch.symbols[i].id);
  }
  return absl::OkStatus();
}

const Bpe::Ranked* Bpe::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(Key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::Propose(int32_t left, Scratch& scratch) const {
  const Scratch::Symbol& symbol = scratch.symbols[left];
  if (symbol.next < 0) return;
  const Ranked* merge = FindMerge(symbol.id, scratch.symbols[symbol.next].id);
  if (merge == nullptr) return;
  scratch.heap.push_back({merge->rank, left, merge->joined});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
}

void Bpe::MergeAll(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  scratch.heap.clear();
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols.size()); ++i) {
    const Ranked* merge = FindMerge(symbols[i].id, symbols[i + 1].id);
    if (merge != nullptr) scratch.heap.push_back({merge->rank, i, merge->joined});
  }
  std::make_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
  while (!scratch.heap.empty()) {
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), std::greater<>());
    const Scratch::Proposal best = scratch.heap.back();
    scratch.heap.pop_back();
    Scratch::Symbol& left = symbols[best.position];
    if (left.id < 0 || left.next < 0) continue;
    // A neighbour may have changed since the proposal was made.
    const Ranked* merge = FindMerge(left.id, symbols[left.next].id);
    if (merge == nullptr || merge->rank != best.rank) continue;
    Scratch::Symbol& right = symbols[left.next];
    left.id = best.joined;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    Propose(best.position, scratch);
    if (left.previous >= 0) Propose(left.previous, scratch);
  }
}

}  // namespace quicksilver
