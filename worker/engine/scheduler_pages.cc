#include <algorithm>
#include <limits>
#include <tuple>

#include "common/check.h"
#include "worker/engine/scheduler.h"

// The part of the scheduler that says who has a place and which pages.

namespace quicksilver {
namespace {

// In a step so many sequences may find too few pages to start while later, smaller ones start in their place.
constexpr int kOvertakenMax = 4;
constexpr uint64_t kRetrySteps = 4;

}  // namespace

// A guide's included.
int32_t Scheduler::PagesFor(const Sequence& sequence, int32_t keys) const {
  return (keys + limits_.page_size - 1) / limits_.page_size * (sequence.guided() ? 2 : 1);
}

// One that finds too few pages lets others go first, until it has waited long enough to be counted a class better.
void Scheduler::StartWaiting() {
  for (int overtaken = 0; waiting() > 0 && overtaken < kOvertakenMax;) {
    Record* const next = NextToStart();
    if (next == nullptr || Start(*next)) {
      if (next == nullptr) return;
      continue;
    }
    if (next->level < next->priority) return;
    ++overtaken;
  }
}

// Where all places are taken only a better class gets one, see Start().
Scheduler::Record* Scheduler::NextToStart() {
  int32_t priorities = std::numeric_limits<int32_t>::max();
  if (running_ == limits_.sequences_max) {
    priorities = 0;
    for (const Record& record : records_) {
      if (!record.runs || record.id == favoured_ || record.live->running.sequence.must_keep_kv()) continue;
      priorities = std::max(priorities, record.priority);
    }
  }
  Record* next = nullptr;
  const auto rank = [this](const Record& record) {
    return std::make_tuple(record.level, SharesOf(record).lead(record.share), record.deadline_micros);
  };
  for (Record& record : records_) {
    if (record.runs || record.tried_step == step_ || record.priority >= priorities) continue;
    if (record.awaited != 0 && StillAwaits(record)) continue;
    if (next == nullptr || rank(record) < rank(*next)) next = &record;
  }
  return next;
}

// False when it finds too few pages. It starts when the pages of all it knows are at hand, beside those that its equals
// and betters still need for what they know, and one each for what comes then: one that starts too early would only be
// preempted.
bool Scheduler::Start(Record& record) {
  Live& live = *record.live;
  RunningSequence& running = live.running;
  record.tried_step = step_;
  if (running_ > 0 && PagesAtHand() < live.pages_wanted && step_ < live.retry_step) return false;
  const int32_t found = AcquirePrefix(live);
  if (Awaits(record)) {
    LetGo(live);
    return true;
  }
  const int32_t needed = PagesFor(running.sequence, running.sequence.denoise_keys()) - found;
  if (promised_step_ != step_) CountPromised();
  const int32_t wanted = needed + promised_[static_cast<size_t>(record.priority)];
  if (running_ > 0 && PagesAtHand() < wanted && !MakeRoom(record, wanted)) {
    LetGo(live);
    live.pages_wanted = wanted;
    live.retry_step = step_ + kRetrySteps;
    return false;
  }
  if (running_ == limits_.sequences_max) {
    Record* last = nullptr;
    for (Record& other : records_) {
      if (other.runs && MayPreempt(record, other) && (last == nullptr || IsLessUrgent(other, *last))) last = &other;
    }
    CHECK(last != nullptr);
    Preempt(*last);
  }
  record.runs = true;
  ++running_;
  if (record.level < 0 && favoured_ == 0) Favour(record);
  const int32_t cached = found * limits_.page_size;
  if (cached > 0) running.sequence.TakeCached(cached);
  const int32_t promised = PromisedTo(running);
  for (size_t i = static_cast<size_t>(record.priority); i < promised_.size(); ++i) promised_[i] += promised;
  if (running.preemptions > 0) --counts_.preempted;
  if (running.preemptions > 0 || !live.shares) return true;
  running.cached_tokens = std::min(cached, running.sequence.prompt_tokens());
  counts_.prefix_query_tokens += static_cast<uint64_t>(running.sequence.open_block_start());
  counts_.prefix_hit_tokens += static_cast<uint64_t>(cached);
  return true;
}

// Takes the pages that hold what comes before its open block already; returns how many.
int32_t Scheduler::AcquirePrefix(Live& live) {
  const Sequence& sequence = live.running.sequence;
  live.shares = limits_.share_prefixes && !live.cache_salt.empty() && sequence.spec().grid != BlockGrid::kAfterPrompt &&
                limits_.page_size % sequence.prefill_unit() == 0;
  if (!live.shares) return 0;
  std::vector<int32_t>& pages = live.running.pages;
  const int32_t page_size = limits_.page_size;
  int32_t parent = PrefixCache::kNone;
  for (int32_t start = 0; start + page_size <= sequence.cacheable_before(); start += page_size) {
    parent = cache_.Find(parent, live.cache_salt, sequence.canvas().subspan(start, page_size));
    if (parent == PrefixCache::kNone) break;
    cache_.Acquire(parent);
    pages.push_back(parent);
  }
  return live.published = static_cast<int32_t>(pages.size());
}

// Whether one that is no less urgent is about to compute the page that comes after those it found.
bool Scheduler::Awaits(Record& record) {
  Live& live = *record.live;
  if (!live.shares || record.level < record.priority) return false;
  const size_t found = static_cast<size_t>(live.published);
  for (const Record& other : records_) {
    if (!other.runs || !other.live->shares || other.priority > record.priority) continue;
    const Live& ahead = *other.live;
    if (ahead.published != live.published || ahead.cache_salt != live.cache_salt) continue;
    if (found > 0 && ahead.running.pages[found - 1] != live.running.pages[found - 1]) continue;
    const Sequence &one = live.running.sequence, &two = ahead.running.sequence;
    const int32_t positions = two.prefill_rows() == 0 ? 0 : std::min(one.cacheable_before(), two.open_block_start());
    const auto same = one.canvas().subspan(0, static_cast<size_t>(positions));
    const auto differs = std::mismatch(same.begin(), same.end(), two.canvas().begin()).first;
    const int32_t shared = static_cast<int32_t>(differs - same.begin()) / limits_.page_size;
    if (shared <= live.published) continue;
    record.awaited = other.id;
    live.pages_awaited = shared;
    return true;
  }
  return false;
}

bool Scheduler::StillAwaits(Record& record) {
  const Record* const other = FindRecord(record.awaited);
  if (record.level == record.priority && other != nullptr && other->runs && other->live->shares &&
      other->live->running.sequence.prefill_rows() > 0 && other->live->published < record.live->pages_awaited) {
    return true;
  }
  record.awaited = 0;
  return false;
}

// Pages that one that runs will want soon: for all it knows, and one for what comes then.
int32_t Scheduler::PromisedTo(const RunningSequence& running) const {
  const Sequence& sequence = running.sequence;
  const int32_t held = static_cast<int32_t>(running.pages.size() + running.guide_pages.size());
  const int32_t known = PagesFor(sequence, sequence.denoise_keys());
  const int32_t all = PagesFor(sequence, sequence.keys_needed_max());
  return std::max(0, std::min(all, known + 1) - held);
}

void Scheduler::CountPromised() {
  promised_.fill(0);
  for (const Record& record : records_) {
    if (!record.runs) continue;
    const int32_t promised = PromisedTo(record.live->running);
    for (size_t i = static_cast<size_t>(record.priority); i < promised_.size(); ++i) promised_[i] += promised;
  }
  promised_step_ = step_;
}

bool Scheduler::ReservePages(Record& record, int32_t keys) {
  RunningSequence& running = record.live->running;
  if (int64_t{limits_.page_size} * static_cast<int64_t>(running.pages.size()) >= keys) return true;
  const int32_t held = static_cast<int32_t>(running.pages.size() + running.guide_pages.size());
  const int32_t needed = PagesFor(running.sequence, keys) - held;
  if (needed > PagesAtHand() && !MakeRoom(record, needed)) return false;
  while (pool_.free() < needed) CHECK(cache_.Evict());
  const int32_t of_guide = running.sequence.guided() ? needed / 2 : 0;
  for (int32_t i = 0; i < of_guide; ++i) running.guide_pages.push_back(pool_.Take());
  for (int32_t i = of_guide; i < needed; ++i) running.pages.push_back(pool_.Take());
  return true;
}

// One that runs may preempt all that are less urgent, one that is to start only those of a lower class. Who keeps more
// than clean keys on its pages keeps them for its block, whose keys have all their pages, so that it ends without
// others.
bool Scheduler::MayPreempt(const Record& wants, const Record& victim) const {
  if (victim.live->running.sequence.must_keep_kv()) return false;
  if (wants.runs) return IsLessUrgent(victim, wants);
  return victim.id != favoured_ && victim.priority > wants.priority;
}

bool Scheduler::IsLessUrgent(const Record& a, const Record& b) const {
  return std::make_tuple(a.id != favoured_, a.priority, a.id) > std::make_tuple(b.id != favoured_, b.priority, b.id);
}

// Preempts the least urgent ones until `pages` are at hand; nobody when that cannot be.
bool Scheduler::MakeRoom(const Record& wants, int32_t pages) {
  victims_.clear();
  for (Record& record : records_) {
    if (record.runs && &record != &wants && MayPreempt(wants, record)) victims_.push_back(&record);
  }
  if (victims_.empty()) return false;
  std::sort(victims_.begin(), victims_.end(),
            [this](const Record* a, const Record* b) { return IsLessUrgent(*a, *b); });
  int32_t room = PagesAtHand();
  size_t victims = 0;
  const auto count = [this](const Record& victim, const auto& what) {
    for (const int32_t page : victim.live->running.pages) what(page, shed_[static_cast<size_t>(page)]);
    for (const int32_t page : victim.live->running.guide_pages) what(page, shed_[static_cast<size_t>(page)]);
  };
  for (; room < pages && victims < victims_.size(); ++victims) {
    count(*victims_[victims], [&](int32_t page, int32_t& shed) { room += ++shed == pool_.owners(page) ? 1 : 0; });
  }
  for (size_t i = 0; i < victims; ++i) count(*victims_[i], [](int32_t, int32_t& shed) { shed = 0; });
  if (room < pages) return false;
  for (size_t i = 0; i < victims; ++i) Preempt(*victims_[i]);
  CHECK(PagesAtHand() >= pages);
  return true;
}

// Also takes back what it was granted in this step.
void Scheduler::Preempt(Record& victim) {
  CHECK(victim.runs && victim.id != favoured_);
  LetGo(*victim.live);
  victim.live->running.sequence.DropKv();
  ++victim.live->running.preemptions;
  ++counts_.preemptions;
  ++counts_.preempted;
  victim.runs = false;
  victim.tried_step = step_;
  promised_step_ = 0;
  --running_;
  rows_left_ += victim.demand.granted;
  prefill_left_ += std::min(victim.demand.granted, victim.demand.prefill);
  victim.demand.granted = 0;
}

// Every page that is filled with clean KV becomes one of the cache; where the cache has it already, the cache's page
// replaces it.
void Scheduler::Publish(Live& live) {
  if (!live.shares) return;
  std::vector<int32_t>& pages = live.running.pages;
  const Sequence& sequence = live.running.sequence;
  const int32_t page_size = limits_.page_size;
  for (; (live.published + 1) * page_size <= sequence.written(); ++live.published) {
    const size_t index = static_cast<size_t>(live.published);
    const int32_t parent = index == 0 ? PrefixCache::kNone : pages[index - 1];
    const int32_t kept = cache_.Offer(parent, live.cache_salt,
                                      sequence.canvas().subspan(live.published * page_size, page_size), pages[index]);
    if (kept == PrefixCache::kNone) {
      live.shares = false;
      return;
    }
    if (kept == pages[index]) continue;
    cache_.Acquire(kept);
    pool_.Drop(pages[index]);
    pages[index] = kept;
  }
}

void Scheduler::LetGo(Live& live) {
  RunningSequence& running = live.running;
  for (size_t i = running.pages.size(); i-- > 0;) {
    if (static_cast<int32_t>(i) < live.published) {
      cache_.Release(running.pages[i], step_);
    } else {
      pool_.Drop(running.pages[i]);
    }
  }
  for (const int32_t page : running.guide_pages) pool_.Drop(page);
  running.pages.clear();
  running.guide_pages.clear();
  live.published = 0;
}

}  // namespace quicksilver
