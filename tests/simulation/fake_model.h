#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "worker/decoding/sequence.h"

namespace quicksilver::simulation {

/// What the fake model says at one place: a hash of the request's seed, choice, position and step, of the weights
/// (`build`) and of all tokens that the row could see (`context`). So a wrong resume, a wrong page or a wrong canvas
/// changes the answer.
RowChoice Choose(const DrawPlace& place, uint64_t context, uint64_t build);

/// The KV cache of a group, as what was written to it: each slot remembers the token, its position, and a hash of all
/// tokens that the row's values depend on. What a segment reads must be what its sequence would have written itself.
class FakeKv {
 public:
  FakeKv(int pages, int page_size, int block_length);

  /// One forward of all `segments`, which see what earlier forwards wrote and what they write themselves. Returns the
  /// first thing that is wrong, or nothing.
  struct Rows {
    uint64_t sequence = 0;
    std::string salt;  ///< Whose pages it may share; empty: nobody's.
    const Sequence* state = nullptr;
    Segment segment;
    absl::Span<const int32_t> pages;
    absl::Span<const int32_t> guide_pages;
    uint64_t context = 0;  ///< Out: of all keys it saw.
  };
  std::string Forward(std::vector<Rows>& segments);
  /// What this sequence wrote is not sound: only those who hold its pages already may go on reading them.
  void Distrust(uint64_t sequence, std::set<uint64_t> holders) { distrusted_[sequence] = std::move(holders); }

 private:
  struct Slot {
    TokenId token = -1;
    int32_t position = -1;
    uint64_t context = 0;
    uint64_t step = 0;
    uint64_t writer = 0;
    const std::string* salt = nullptr;
    bool clean = false;
  };

  Slot* Find(absl::Span<const int32_t> pages, int32_t position);
  std::string Read(const Rows& rows, uint64_t& context);
  std::string Write(const Rows& rows, bool guide, uint64_t& context);

  const int page_size_;
  const int block_length_;
  uint64_t step_ = 0;
  std::vector<Slot> slots_;                            // [pages, page_size]
  std::map<uint64_t, std::set<uint64_t>> distrusted_;  // Sequences, and who may still read them.
  std::set<std::string> salts_;                        // What slots point to.
};

}  // namespace quicksilver::simulation
