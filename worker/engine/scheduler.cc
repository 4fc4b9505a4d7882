#include "worker/engine/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace quicksilver {
namespace {

constexpr int32_t kPriorityLast = 2;
// Where blocks that are ready could fill a step, prompts get this share of it; else a prompt's first chunk is so long.
constexpr int32_t kPrefillShare = 8;

// An order key is level | deadline in ms or lead in rows, then what decides among equals | index of the record.
constexpr int32_t kLevelBias = 1 << 15;
constexpr int32_t kLevelFavoured = -kLevelBias;
constexpr int kLevelShift = 48;
constexpr uint64_t kDetailMax = (uint64_t{1} << kLevelShift) - 1;
constexpr int kIndexBits = 20;
constexpr uint64_t kIndexMask = (uint64_t{1} << kIndexBits) - 1;

uint64_t HighKey(int32_t level, uint64_t detail) {
  return static_cast<uint64_t>(level + kLevelBias) << kLevelShift | std::min(detail, kDetailMax);
}

// Without the guide's.
int32_t PagesOf(const SchedulerLimits& limits, const Sequence& sequence) {
  const int32_t positions = sequence.keys_needed_max();
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

Scheduler::Scheduler(const SchedulerLimits& limits, PageHash hash)
    : limits_(limits),
      pool_(limits.pages),
      cache_(pool_, limits.page_size, hash),
      shed_(static_cast<size_t>(limits.pages), 0) {
  CHECK(limits.sequences_max > 0 && limits.step_rows_max > 0 && limits.page_size > 0);
}

void Scheduler::Add(uint64_t id, Sequence sequence, SchedulingTerms terms, absl::Duration now) {
  CHECK(CheckFits(limits_, sequence).ok() && terms.priority >= 0 && terms.priority <= kPriorityLast);
  CHECK(id != 0 && (records_.empty() || records_.back().id < id) && records_.size() < kIndexMask);
  now_micros_ = std::max(now_micros_, absl::ToInt64Microseconds(now));
  Record record;
  record.id = id;
  record.progress_micros = now_micros_;
  record.deadline_micros = absl::ToInt64Microseconds(terms.deadline);
  record.priority = terms.priority;
  record.share = SharesOf(record).Join(terms.tenant);
  record.live = std::make_unique<Live>(Live{.running = {id, std::move(sequence)}, .cache_salt = terms.cache_salt});
  records_.push_back(std::move(record));
}

bool Scheduler::Remove(uint64_t id, bool sound) {
  Record* const record = FindRecord(id);
  if (record == nullptr) return false;
  Live& live = *record->live;
  if (sound) {
    Publish(live);
  } else {
    for (int32_t i = live.published - 1; i >= 0; --i) cache_.Ban(live.running.pages[static_cast<size_t>(i)]);
  }
  LetGo(live);
  if (record->runs) {
    --running_;
  } else if (live.running.preemptions > 0) {
    --counts_.preempted;
  }
  if (favoured_ == id) favoured_ = 0;
  SharesOf(*record).Leave(record->share);
  records_.erase(records_.begin() + (record - records_.data()));
  return true;
}

Scheduler::Record* Scheduler::FindRecord(uint64_t id) {
  const auto found = std::lower_bound(records_.begin(), records_.end(), id,
                                      [](const Record& record, uint64_t wanted) { return record.id < wanted; });
  return found != records_.end() && found->id == id ? &*found : nullptr;
}

const RunningSequence* Scheduler::Find(uint64_t id) const {
  const Record* const record = const_cast<Scheduler*>(this)->FindRecord(id);
  return record == nullptr ? nullptr : &record->live->running;
}

std::vector<uint64_t> Scheduler::Expired(absl::Duration now) const {
  const int64_t micros = absl::ToInt64Microseconds(now);
  std::vector<uint64_t> ids;
  for (const Record& record : records_) {
    if (record.deadline_micros <= micros) ids.push_back(record.id);
  }
  return ids;
}

SchedulerStatistics Scheduler::statistics() const {
  SchedulerStatistics statistics = counts_;
  statistics.running = running();
  statistics.waiting = waiting();
  statistics.pages_free = pool_.free();
  statistics.pages_cached = pool_.cached();
  statistics.pages_used = pool_.used();
  statistics.evictions = cache_.evictions();
  return statistics;
}

const std::vector<PlannedSegment>& Scheduler::Plan(absl::Duration now, int32_t prefill_rows_max) {
  ++step_;
  now_micros_ = std::max(now_micros_, absl::ToInt64Microseconds(now));
  for (Record& record : records_) {
    record.demand = Demand();
    if (record.runs) Publish(*record.live);
  }
  Age();
  StartWaiting();
  CollectDemands();
  GrantRows(prefill_rows_max);
  BuildPlan();
  SettleShares();
  CheckStep();
  return plan_;
}

// A sequence that has waited beyond the best class is favoured until it has finished a block.
void Scheduler::Age() {
  const int64_t ageing_micros = absl::ToInt64Microseconds(kAgeing);
  Record* favoured = favoured_ == 0 ? nullptr : FindRecord(favoured_);
  if (favoured != nullptr && favoured->live->running.sequence.block() != favoured_block_) favoured = nullptr;
  const bool vacant = favoured == nullptr;
  for (Record& record : records_) {
    const int64_t waited = now_micros_ - record.progress_micros;
    record.level = record.priority;
    if (waited < ageing_micros) continue;
    record.level -= static_cast<int32_t>(std::min<int64_t>(waited / ageing_micros, kLevelBias / 2));
    if (!vacant || !record.runs || record.level >= 0) continue;
    if (favoured == nullptr || record.progress_micros < favoured->progress_micros) favoured = &record;
  }
  favoured_ = 0;
  if (favoured != nullptr) Favour(*favoured);
}

void Scheduler::Favour(Record& record) {
  record.level = kLevelFavoured;
  favoured_ = record.id;
  favoured_block_ = record.live->running.sequence.block();
}

void Scheduler::CollectDemands() {
  int64_t ready_rows = 0, ready_pages = 0;
  prefilling_ = prefill_block_ = 0;
  fewest_rows_ = limits_.step_rows_max;
  ready_priority_ = std::numeric_limits<int32_t>::max();
  for (Record& record : records_) {
    if (!record.runs) continue;
    const RunningSequence& running = record.live->running;
    const Sequence& sequence = running.sequence;
    record.demand.whole = sequence.denoise_rows();
    record.demand.prefill = sequence.prefill_rows();
    if (record.demand.prefill > 0) {
      ++prefilling_;
      prefill_block_ = std::max(prefill_block_, sequence.prefill_unit());
      fewest_rows_ = std::min(fewest_rows_, sequence.prefill_unit());
      continue;
    }
    ready_rows += record.demand.whole;
    fewest_rows_ = std::min(fewest_rows_, record.demand.whole);
    ready_priority_ = std::min(ready_priority_, record.priority);
    record.demand.segment = sequence.Next(record.demand.whole);
    const int32_t keys = record.demand.segment.keys_held();
    const int32_t held = static_cast<int32_t>(running.pages.size());
    if (int64_t{held} * limits_.page_size < keys) {
      ready_pages += PagesFor(sequence, keys) - held - static_cast<int32_t>(running.guide_pages.size());
    }
  }
  short_of_rows_ = ready_rows + prefill_block_ > limits_.step_rows_max;
  const bool all_ready_run = !short_of_rows_ && ready_pages <= PagesAtHand();
  order_.clear();
  for (size_t i = 0; i < records_.size(); ++i) {
    Record& record = records_[i];
    if (!record.runs) continue;
    if (all_ready_run && record.demand.prefill == 0) {
      CHECK(ReservePages(record, record.demand.segment.keys_held()));
      record.demand.granted = record.demand.whole;
    } else {
      order_.push_back({0, i});
    }
  }
  rows_left_ = limits_.step_rows_max - (all_ready_run ? static_cast<int32_t>(ready_rows) : 0);
}

// Most steps look at the first ones alone.
Scheduler::Record& Scheduler::Ordered(size_t place) {
  constexpr size_t kSortedAtATime = 64;
  while (place >= ordered_) {
    const size_t end = std::min(order_.size(), ordered_ + kSortedAtATime);
    const auto begin = order_.begin();
    std::partial_sort(begin + static_cast<ptrdiff_t>(ordered_), begin + static_cast<ptrdiff_t>(end), order_.end());
    ordered_ = end;
  }
  return RecordOf(order_[place]);
}

Scheduler::Record& Scheduler::RecordOf(const OrderKey& key) {
  return records_[static_cast<size_t>(key.low & kIndexMask)];
}

// Where rows suffice for all blocks that are ready, these come before all prefill.
int32_t Scheduler::OrderLevel(const Record& record) const {
  return short_of_rows_ || record.demand.prefill > 0 ? record.level : kLevelFavoured;
}

void Scheduler::Order() {
  ordered_ = 0;
  for (OrderKey& key : order_) {
    const Record& record = RecordOf(key);
    const uint64_t deadline = static_cast<uint64_t>(std::max<int64_t>(0, record.deadline_micros));
    key.high = HighKey(OrderLevel(record), deadline / 1000);
    key.low |= record.live->running.last_step << kIndexBits;
  }
  const auto shared = [](const FairShares& shares) { return shares.tenants() > 1; };
  if (std::any_of(shares_.begin(), shares_.end(), shared)) OrderByShares();
}

// Each sequence goes where its tenant will be when those of the tenant that go before it had their rows.
void Scheduler::OrderByShares() {
  std::sort(order_.begin(), order_.end());
  for (size_t i = 0; i < shares_.size(); ++i) {
    leads_[i].assign(static_cast<size_t>(shares_[i].shares_max()), 0);
  }
  for (size_t i = 0; i < order_.size(); ++i) {
    OrderKey& key = order_[i];
    const Record& record = RecordOf(key);
    uint64_t& ahead = leads_[static_cast<size_t>(record.priority)][static_cast<size_t>(record.share)];
    key.high = HighKey(OrderLevel(record), SharesOf(record).lead(record.share) + ahead);
    key.low = i << kIndexBits | (key.low & kIndexMask);
    ahead += static_cast<uint64_t>(std::min(record.demand.whole, limits_.step_rows_max / kPrefillShare));
  }
}

void Scheduler::GrantRows(int32_t prefill_rows_max) {
  prefill_left_ = std::max(prefill_rows_max, prefill_block_);
  prefill_share_left_ = std::max(prefill_block_, limits_.step_rows_max / kPrefillShare);
  prefill_granted_ = false;
  Order();
  if (prefill_missed_ && prefilling_ > 0) {
    for (size_t i = 0; i < order_.size() && !prefill_granted_; ++i) {
      if (Ordered(i).demand.prefill > 0) GrantChunk(Ordered(i));
    }
  }
  size_t looked_at = 0;
  for (; looked_at < order_.size() && rows_left_ >= fewest_rows_; ++looked_at) {
    Record& record = Ordered(looked_at);
    if (!record.runs || record.demand.granted > 0) continue;
    if (record.demand.prefill > 0) {
      GrantChunk(record);
    } else {
      GrantReady(record);
    }
  }
  for (size_t i = 0; i < looked_at && prefilling_ > 0; ++i) {
    Record& record = Ordered(i);
    if (record.demand.granted > 0 && record.demand.granted < record.demand.whole) Lengthen(record);
  }
  prefill_missed_ = prefilling_ > 0 && !prefill_granted_;
}

// Leaves a block's rows to prefill, once something is granted: a step that has room for one of them alone takes turns.
void Scheduler::GrantReady(Record& record) {
  const bool first = rows_left_ == limits_.step_rows_max;
  const int32_t kept = first || prefilling_ == 0 || prefill_granted_ ? 0 : prefill_block_;
  if (record.demand.whole <= rows_left_ - kept) Grant(record, record.demand.whole);
}

void Scheduler::GrantChunk(Record& record) {
  const Demand& demand = record.demand;
  const int32_t block = record.live->running.sequence.prefill_unit();
  const bool shares = short_of_rows_ && record.priority >= ready_priority_;
  int32_t rows = std::min({demand.prefill, prefill_left_, rows_left_});
  if (shares) {
    rows = std::min(rows, prefill_share_left_);
  } else if (!short_of_rows_) {
    rows = std::min(rows, std::max(block, limits_.step_rows_max / kPrefillShare));
  }
  rows = rows / block * block;
  if (rows == 0) return;
  const bool whole = rows == demand.prefill && demand.whole <= rows_left_;
  if (!Grant(record, whole ? demand.whole : rows)) {
    rows = block;
    if (!Grant(record, rows)) return;
  }
  prefill_granted_ = true;
  if (shares) prefill_share_left_ -= rows;
}

// Gives rows that are left to a chunk, as far as pages are at hand.
void Scheduler::Lengthen(Record& record) {
  Demand& demand = record.demand;
  const Sequence& sequence = record.live->running.sequence;
  const int32_t block = sequence.prefill_unit();
  const int32_t more = std::min({demand.prefill - demand.granted, prefill_left_, rows_left_}) / block * block;
  int32_t rows = demand.granted + more;
  if (rows == demand.prefill && demand.whole - demand.granted <= rows_left_) rows = demand.whole;
  const int32_t held = static_cast<int32_t>(record.live->running.pages.size());
  if (rows == demand.granted || PagesFor(sequence, sequence.Next(rows).keys_held()) - held > PagesAtHand()) return;
  rows_left_ += demand.granted;
  prefill_left_ += demand.granted;
  CHECK(Grant(record, rows));
}

bool Scheduler::Grant(Record& record, int32_t rows) {
  const Segment segment = record.live->running.sequence.Next(rows);
  if (!ReservePages(record, segment.keys_held())) return false;
  record.demand.granted = rows;
  record.demand.segment = segment;
  rows_left_ -= rows;
  prefill_left_ -= std::min(rows, record.demand.prefill);
  return true;
}

void Scheduler::BuildPlan() {
  plan_.clear();
  for (Record& record : records_) {
    if (record.demand.granted == 0) continue;
    RunningSequence& running = record.live->running;
    plan_.push_back({&running, record.demand.segment});
    running.last_step = step_;
    if (record.demand.segment.denoise) record.progress_micros = now_micros_;
  }
  CHECK(!plan_.empty() || records_.empty());
}

void Scheduler::SettleShares() {
  for (const Record& record : records_) {
    FairShares& shares = SharesOf(record);
    if (shares.tenants() < 2) continue;
    shares.Charge(record.share, record.demand.granted);
    if (!record.runs || record.demand.granted < record.demand.whole) shares.Miss(record.share);
  }
  for (FairShares& shares : shares_) shares.Settle();
}

}  // namespace quicksilver
