#include <cstdio>
#include <cstdlib>

#include "worker/engine/scheduler.h"

// The part of the scheduler that holds it to its promises, at every step.

namespace quicksilver {
namespace {

constexpr uint64_t kFullCheckSteps = 1024;

}  // namespace

// No page is lost; what a segment writes is its own, and what it reads is there.
void Scheduler::CheckStep() const {
  int64_t owned = 0;
  for (const Record& record : records_) {
    owned += static_cast<int64_t>(record.live->running.pages.size() + record.live->running.guide_pages.size());
  }
  Require(owned == pool_.owners(), "the pages of all sequences are those that have owners");
  Require(pool_.free() + pool_.cached() + pool_.used() == pool_.total(), "free + cached + used pages are all");
  for (const auto& [running, segment] : plan_) {
    const int64_t end = segment.first_position + segment.rows, written = end + segment.shadow_rows;
    const int64_t held = static_cast<int64_t>(running->pages.size()) * limits_.page_size;
    Require(end <= segment.keys && segment.keys_held() <= held, "a segment's keys have pages");
    for (int64_t page = segment.first_position / limits_.page_size; page * limits_.page_size < written; ++page) {
      Require(IsPrivate(running->pages[static_cast<size_t>(page)]), "what a segment writes belongs to it alone");
    }
  }
  if (step_ % kFullCheckSteps == 0) Check();
}

bool Scheduler::IsPrivate(int32_t page) const { return pool_.owners(page) == 1 && !pool_.kept(page); }

void Scheduler::Check() const {
  std::vector<int32_t> owners(static_cast<size_t>(pool_.total()), 0);
  int32_t running = 0, preempted = 0;
  for (const Record& record : records_) {
    const RunningSequence& sequence = record.live->running;
    running += record.runs ? 1 : 0;
    preempted += !record.runs && sequence.preemptions > 0 ? 1 : 0;
    Require(record.runs || (sequence.pages.empty() && sequence.guide_pages.empty()), "who waits holds no page");
    for (const int32_t page : sequence.pages) ++owners[static_cast<size_t>(page)];
    for (const int32_t page : sequence.guide_pages) ++owners[static_cast<size_t>(page)];
    for (size_t i = 0; i < sequence.pages.size(); ++i) {
      const bool published = static_cast<int32_t>(i) < record.live->published;
      Require(published ? pool_.kept(sequence.pages[i]) : IsPrivate(sequence.pages[i]), "a page is shared or private");
    }
    for (const int32_t page : sequence.guide_pages) Require(IsPrivate(page), "a guide's page is private");
  }
  Require(running == running_ && running_ <= limits_.sequences_max, "who runs has a place");
  Require(preempted == counts_.preempted, "those that were preempted are counted");
  for (int32_t page = 0; page < pool_.total(); ++page) {
    Require(pool_.owners(page) == owners[static_cast<size_t>(page)], "a page has the owners that hold it");
  }
  pool_.Check();
  cache_.Check();
}

void Scheduler::Require(bool holds, const char* what) const {
  if (holds) return;
  std::fprintf(stderr, "scheduler: broken in step %llu: %s\n", static_cast<unsigned long long>(step_), what);
  std::fprintf(stderr,
               "pages: %d, free %d, cached %d, used %d, owners %lld; sequences: %zu, running %d, favoured %llu\n",
               pool_.total(), pool_.free(), pool_.cached(), pool_.used(), static_cast<long long>(pool_.owners()),
               records_.size(), running_, static_cast<unsigned long long>(favoured_));
  for (const Record& record : records_) {
    const RunningSequence& running = record.live->running;
    std::fprintf(stderr,
                 "sequence %llu: class %d, %s, pages %zu + %zu, of the cache %d, written %d of %zu, granted %d of %d\n",
                 static_cast<unsigned long long>(record.id), record.priority, record.runs ? "runs" : "waits",
                 running.pages.size(), running.guide_pages.size(), record.live->published, running.sequence.written(),
                 running.sequence.canvas().size(), record.demand.granted, record.demand.whole);
  }
  std::abort();
}

}  // namespace quicksilver
