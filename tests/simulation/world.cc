#include "tests/simulation/world.h"

#include <algorithm>
#include <utility>

#include "tests/simulation/random.h"

namespace quicksilver::simulation {

void World::At(absl::Duration when, Event event) { entries_.push({std::max(when, now_), order_++, std::move(event)}); }

bool World::Run(absl::Duration end, const std::function<bool()>& done) {
  while (!entries_.empty() && entries_.top().when <= end && !violation_) {
    Event event = std::move(const_cast<Entry&>(entries_.top()).event);  // The order does not depend on it.
    now_ = entries_.top().when;
    entries_.pop();
    ++events_;
    event();
    if (done()) return true;
  }
  if (!violation_) now_ = std::max(now_, end);
  return false;
}

void World::Violate(uint64_t request, std::string rule, std::string text) {
  if (violation_) return;
  Note(request, "VIOLATION " + rule + ": " + text);
  violation_ = Violation{std::move(rule), std::move(text), request, now_};
}

void World::Note(uint64_t request, std::string text) {
  if (tracing_) trace_.push_back({now_, request, std::move(text)});
}

void World::Digest(uint64_t value) { digest_ = Mix(digest_, value); }

}  // namespace quicksilver::simulation
