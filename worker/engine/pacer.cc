#include "worker/engine/pacer.h"

#include <algorithm>

namespace quicksilver {

int32_t Pacer::CommitsMin(uint64_t id, const Sequence& sequence, absl::Duration now, absl::Duration step) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return 0;
  Entry& entry = found->second;
  if (entry.first_asked == absl::InfiniteDuration()) {
    entry.first_asked = now;
    entry.first_forwards = sequence.forwards();
  } else if (sequence.forwards() > entry.first_forwards) {
    step = std::max(step, (now - entry.first_asked) / (sequence.forwards() - entry.first_forwards));
  }
  if (step <= absl::ZeroDuration()) return 0;
  absl::Duration rest;
  return CommitsForPace(sequence.remaining(), absl::IDivDuration(entry.target - now, step, &rest));
}

}  // namespace quicksilver
