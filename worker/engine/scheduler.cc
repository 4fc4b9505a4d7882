#include "worker/engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace quicksilver {
namespace {

// A prompt's chunk is at least this share of a step, so that prefill ends in bounded time beside full blocks.
constexpr int32_t kPrefillShare = 8;

// Without the guide's.
int32_t PagesOf(const SchedulerLimits& limits, const Sequence& sequence) {
  const int32_t positions = static_cast<int32_t>(sequence.canvas().size());
  return (positions + limits.page_size - 1) / limits.page_size;
}

}  // namespace

absl::Status CheckFits(const SchedulerLimits& limits, const Sequence& sequence) {
  const int32_t rows = sequence.rows_needed_max();
  if (rows > limits.step_rows_max) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_ids (", sequence.prompt_tokens(), ") and max_tokens (",
                                                   sequence.spec().tokens_max, ") need ", rows,
                                                   " rows in one step, at most ", limits.step_rows_max));
  }
  const int64_t pages = int64_t{PagesOf(limits, sequence)} * (sequence.guided() ? 2 : 1);
  if (pages > limits.pages) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_ids (", sequence.prompt_tokens(), ") and max_tokens (",
                                                   sequence.spec().tokens_max, ") need ", pages, " pages, at most ",
                                                   limits.pages));
  }
  return absl::OkStatus();
}

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), pool_(limits.pages) {
  CHECK(limits.sequences_max > 0 && limits.step_rows_max > 0 && limits.page_size > 0);
}

void Scheduler::Add(uint64_t id, Sequence sequence, SchedulingTerms terms, absl::Duration) {
  CHECK(CheckFits(limits_, sequence).ok() && terms.priority >= 0 && terms.priority <= 2);
  CHECK(waiting_.empty() || waiting_.back().sequence->id < id);
  CHECK(running_.empty() || running_.back().sequence->id < id);
  waiting_.push_back({std::make_unique<RunningSequence>(RunningSequence{id, std::move(sequence)}), std::move(terms)});
}

bool Scheduler::Remove(uint64_t id, bool) {
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) {
    if (it->sequence->id != id) continue;
    waiting_.erase(it);
    return true;
  }
  for (auto it = running_.begin(); it != running_.end(); ++it) {
    if (it->sequence->id != id) continue;
    pool_.Give(it->sequence->pages);
    pool_.Give(it->sequence->guide_pages);
    running_.erase(it);
    return true;
  }
  return false;
}

const RunningSequence* Scheduler::Find(uint64_t id) const {
  for (const Waiting& waiting : waiting_) {
    if (waiting.sequence->id == id) return waiting.sequence.get();
  }
  for (const Waiting& running : running_) {
    if (running.sequence->id == id) return running.sequence.get();
  }
  return nullptr;
}

std::vector<uint64_t> Scheduler::Expired(absl::Duration now) const {
  std::vector<uint64_t> ids;
  for (const Waiting& running : running_) {
    if (running.terms.deadline <= now) ids.push_back(running.sequence->id);
  }
  for (const Waiting& waiting : waiting_) {
    if (waiting.terms.deadline <= now) ids.push_back(waiting.sequence->id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

SchedulerStatistics Scheduler::statistics() const {
  SchedulerStatistics statistics;
  statistics.running = running();
  statistics.waiting = waiting();
  statistics.pages_free = pool_.free();
  statistics.pages_used = pool_.total() - pool_.free();
  return statistics;
}

void Scheduler::StartWaiting() {
  while (!waiting_.empty() && running() < limits_.sequences_max) {
    RunningSequence& next = *waiting_.front().sequence;
    const int32_t pages = PagesOf(limits_, next.sequence);
    if (pages * (next.sequence.guided() ? 2 : 1) > pool_.free()) return;
    next.pages = *pool_.Take(pages);
    if (next.sequence.guided()) next.guide_pages = *pool_.Take(pages);
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// Rows that a sequence gets at first, or 0 when what is left is too little for it.
int32_t Scheduler::FirstGrant(const Sequence& sequence, int32_t rows_left) const {
  const int32_t whole = sequence.denoise_rows();
  if (sequence.prefill_rows() == 0) return whole <= rows_left ? whole : 0;
  const int32_t block = sequence.spec().decoding.block_length;
  const int32_t chunk = std::max(block, limits_.step_rows_max / kPrefillShare);
  const int32_t grant = std::min({whole, chunk, rows_left});
  return grant >= block ? grant : 0;
}

std::vector<PlannedSegment> Scheduler::Plan(absl::Duration, int32_t) {
  ++step_;
  StartWaiting();
  CheckPages();
  std::vector<RunningSequence*> order;
  for (const Waiting& running : running_) order.push_back(running.sequence.get());
  std::stable_sort(order.begin(), order.end(),
                   [](const RunningSequence* a, const RunningSequence* b) { return a->last_step < b->last_step; });
  std::vector<std::pair<RunningSequence*, int32_t>> grants;
  int32_t left = limits_.step_rows_max;
  for (RunningSequence* running : order) {
    const int32_t grant = FirstGrant(running->sequence, left);
    if (grant == 0) continue;
    grants.emplace_back(running, grant);
    left -= grant;
  }
  std::sort(grants.begin(), grants.end(), [](const auto& a, const auto& b) { return a.first->id < b.first->id; });
  std::vector<PlannedSegment> plan;
  for (auto& [running, grant] : grants) {
    const int32_t more = std::min(left, running->sequence.denoise_rows() - grant);
    left -= more;
    plan.push_back({running, running->sequence.Next(grant + more)});
    running->last_step = step_;
  }
  return plan;
}

void Scheduler::CheckPages() const {
  size_t used = 0;
  for (const Waiting& running : running_) {
    used += running.sequence->pages.size() + running.sequence->guide_pages.size();
  }
  CHECK(static_cast<int32_t>(used) + pool_.free() == pool_.total());
}

}  // namespace quicksilver
