#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace quicksilver::simulation {

/// What went wrong first in a run.
struct Violation {
  std::string rule;      ///< A short name: a shrunken run must break the same one.
  std::string text;      ///< With the values.
  uint64_t request = 0;  ///< Client's number; 0: none in particular.
  absl::Duration at;
};

struct TraceLine {
  absl::Duration at;
  uint64_t request = 0;  ///< 0: of the world at large.
  std::string text;
};

/// Simulated time, and what happens at which of it. Equal runs have equal orders: ties go to what was planned first.
class World {
 public:
  using Event = std::function<void()>;

  /// `tracing`: keep what Note() says.
  explicit World(bool tracing) : tracing_(tracing) {}

  absl::Duration now() const { return now_; }
  /// `when` may be past: it is then now.
  void At(absl::Duration when, Event event);
  void After(absl::Duration delay, Event event) { At(now_ + delay, std::move(event)); }
  /// Until `end`, a violation, or `done` holds (asked after every event). True when `done` did.
  bool Run(absl::Duration end, const std::function<bool()>& done);
  uint64_t events() const { return events_; }

  /// Only the first one counts; the run stops.
  void Violate(uint64_t request, std::string rule, std::string text);
  const std::optional<Violation>& violation() const { return violation_; }

  bool tracing() const { return tracing_; }
  void Note(uint64_t request, std::string text);
  const std::vector<TraceLine>& trace() const { return trace_; }
  /// A hash of all that happened so far, as far as it was mixed in: equal seeds must give equal ones.
  uint64_t digest() const { return digest_; }
  void Digest(uint64_t value);

 private:
  struct Entry {
    absl::Duration when;
    uint64_t order;
    Event event;
    bool operator<(const Entry& other) const {
      return when != other.when ? when > other.when : order > other.order;  // The earliest on top.
    }
  };

  const bool tracing_;
  absl::Duration now_ = absl::Seconds(1);
  uint64_t order_ = 0;
  uint64_t events_ = 0;
  uint64_t digest_ = 0;
  std::priority_queue<Entry> entries_;
  std::optional<Violation> violation_;
  std::vector<TraceLine> trace_;
};

}  // namespace quicksilver::simulation
