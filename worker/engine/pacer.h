#pragma once

#include <cstdint>
#include <map>

#include "absl/time/time.h"
#include "worker/decoding/sequence.h"

namespace quicksilver {

/// How fast sequences must be for their targets. Pure: ranks that are told alike answer alike.
class Pacer {
 public:
  /// `target`, by the group's clock, is when sequence `id` is to be done.
  void Add(uint64_t id, absl::Duration target) { entries_.emplace(id, Entry{target}); }
  void Remove(uint64_t id) { entries_.erase(id); }

  /// Least number of tokens that each of the next steps of `sequence` commits (Sequence::set_commits_min); 0 for one
  /// that was not added. `step`: how long a step takes; zero: unknown. A sequence that has got its steps more rarely
  /// counts with what it got. To be asked before each launch that denoises the sequence.
  int32_t CommitsMin(uint64_t id, const Sequence& sequence, absl::Duration now, absl::Duration step);

 private:
  struct Entry {
    absl::Duration target;
    absl::Duration first_asked = absl::InfiniteDuration();
    int32_t first_forwards = 0;
  };
  std::map<uint64_t, Entry> entries_;
};

}  // namespace quicksilver
