#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "common/check.h"
#include "worker/decoding/decoding_rule.h"

namespace quicksilver {

/// Rows of the vocabulary's width, in floats, that a group whose steps have at most `step_rows_max` rows keeps between
/// two steps, for blocks of a few sequences; 0 when no policy of the family asks for them.
inline int32_t HistoryRows(const ModelSpec& spec, int32_t step_rows_max) {
  constexpr int32_t kHistoryRowsMax = 512;
  const std::vector<Policy> policies = AllowedPolicies(spec);
  const bool wanted = std::find(policies.begin(), policies.end(), Policy::kKlass) != policies.end();
  return wanted ? std::min(step_rows_max, kHistoryRowsMax) : 0;
}

/// Which memory keeps the logits of which rows until the next step (CandidateRequest::history_slot). Pure.
class HistorySlots {
 public:
  explicit HistorySlots(int32_t slots) {
    for (int32_t slot = slots; slot-- > 0;) free_.push_back(slot);
  }

  /// True when sequence `id` has slots for `rows` rows, from now on until Release(); false when they are short.
  bool Acquire(uint64_t id, int32_t rows) {
    const auto held = held_.find(id);
    if (held != held_.end()) {
      CHECK(static_cast<int32_t>(held->second.size()) >= rows);
      return true;
    }
    if (rows > free()) return false;
    held_[id].assign(free_.end() - rows, free_.end());
    free_.resize(free_.size() - static_cast<size_t>(rows));
    return true;
  }
  /// Of a sequence that has none, too.
  void Release(uint64_t id) {
    const auto held = held_.find(id);
    if (held == held_.end()) return;
    free_.insert(free_.end(), held->second.begin(), held->second.end());
    held_.erase(held);
  }
  /// The slot of row `row` of its block.
  int32_t SlotOf(uint64_t id, int32_t row) const { return held_.at(id)[static_cast<size_t>(row)]; }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }

 private:
  std::vector<int32_t> free_;
  std::map<uint64_t, std::vector<int32_t>> held_;
};

}  // namespace quicksilver
