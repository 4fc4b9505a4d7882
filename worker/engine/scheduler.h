#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/decoding/sequence.h"
#include "worker/engine/fair_shares.h"
#include "worker/engine/page_pool.h"
#include "worker/engine/prefix_cache.h"

namespace quicksilver {

/// The budgets of a group. Equal on all ranks.
struct SchedulerLimits {
  int32_t sequences_max = 0;  ///< Running at once.
  int32_t step_rows_max = 0;  ///< Rows of a step (N).
  int32_t pages = 0;
  int32_t page_size = 0;  ///< Positions a page; a multiple of the block length of every sequence that shares.
  bool share_prefixes = false;
};

/// What a sequence may ask for besides its answer.
struct SchedulingTerms {
  int32_t priority = 1;  ///< Its class: 0 goes first, then 1, then 2.
  std::string tenant;    ///< Whose fair share it uses.
  /// By the clock of Plan(). Earlier ones go first; nothing else happens, see Expired().
  absl::Duration deadline = absl::InfiniteDuration();
  std::string cache_salt;  ///< Pages of equal prefixes are shared between equal salts. Empty: with nobody.
};

/// InvalidArgument, naming both values, when no step or no pool of `limits` could ever run `sequence`.
absl::Status CheckFits(const SchedulerLimits& limits, const Sequence& sequence);

/// A sequence and the pages that it holds.
struct RunningSequence {
  uint64_t id = 0;
  Sequence sequence;
  std::vector<int32_t> pages;        ///< By position; they cover the keys of its next segment once that is planned.
  std::vector<int32_t> guide_pages;  ///< The same for its guide rows; empty without guidance.
  uint64_t last_step = 0;            ///< Step that last ran rows of it; 0: none yet.
  int32_t cached_tokens = 0;         ///< Prompt tokens that its first start found in the prefix cache.
  int32_t preemptions = 0;           ///< How often it lost its pages.
};

/// What one sequence does in the step that was planned.
struct PlannedSegment {
  RunningSequence* running = nullptr;
  Segment segment;
};

/// A snapshot and counts since construction.
struct SchedulerStatistics {
  int32_t running = 0;    ///< Hold a place and pages.
  int32_t waiting = 0;    ///< All others, preempted ones included.
  int32_t preempted = 0;  ///< Waiting ones that ran before.
  int32_t pages_free = 0;
  int32_t pages_cached = 0;  ///< Held by no sequence; kept for those to come, taken when pages run out.
  int32_t pages_used = 0;    ///< Held by sequences. free + cached + used = all.
  uint64_t preemptions = 0;
  uint64_t prefix_query_tokens = 0;  ///< Tokens that starting sequences looked for in the prefix cache, …
  uint64_t prefix_hit_tokens = 0;    ///< … and found.
  uint64_t evictions = 0;            ///< Cached pages that were given up for others.
};

/// Decides which sequences run in a step, with how many rows and on which pages. Pure: depends on the calls alone.
///
/// Pages are taken as a sequence grows. When they run out, cached ones are given up, then sequences of a lower class,
/// and for one that already runs also younger ones of its own class, are preempted: they lose their pages, keep their
/// canvas, wait again, and compute what was lost once more. So of those that run, the most urgent one never waits for
/// pages, and none loses them to one that is less urgent or younger.
///
/// Who goes first where places, rows or pages are short: the better class; in a class the tenant with the fewest rows
/// of that class so far (FairShares); of a tenant the earliest deadline, then who was served least recently, then the
/// older one. Who has not denoised for some time counts as one class better for each kAgeing, so everybody's turn
/// comes; who waited beyond the best class, one at a time, keeps its pages until it has finished a block, which no
/// preemption takes away again.
///
/// Prefixes are shared page by page, once they are computed: who needs one that another is computing waits for it, for
/// a time.
///
/// A step runs all blocks that are to be denoised, if rows suffice, and prefills prompts with the others, in chunks.
/// Where denoising alone could fill the step, prompts get an eighth of it (less urgent blocks give way for more).
class Scheduler {
 public:
  /// Who has not denoised for so long counts as one class better, again and again.
  static constexpr absl::Duration kAgeing = absl::Seconds(5);

  /// `hash` is for tests that want collisions.
  explicit Scheduler(const SchedulerLimits& limits, PageHash hash = HashPage);

  /// Queues a sequence. `id` ascends from call to call. Requires: CheckFits() is OK, priority in [0, 2].
  void Add(uint64_t id, Sequence sequence, SchedulingTerms terms, absl::Duration now);
  /// Forgets a waiting or running sequence and lets go of its pages, after its results of the last step were applied.
  /// False when there is none of this id. `sound` is false when its KV is not to be trusted (its logits were not
  /// finite): then no page of it is shared any more.
  bool Remove(uint64_t id, bool sound = true);
  /// The live sequence of this id, or null. Lives until its Remove().
  const RunningSequence* Find(uint64_t id) const;
  /// Live sequences whose deadline is at or before `now`, by ascending id. The caller ends them.
  std::vector<uint64_t> Expired(absl::Duration now) const;

  /// Starts what can start and returns the segments of the next step by ascending id; empty only when there is no live
  /// sequence. `now` is the group's clock. At most `prefill_rows_max` rows prefill beside denoising ones, but at least
  /// a block. To be called when the results of the step before are applied: pages that became final are shared from
  /// then on. The plan lives until the next one, its pointers until the Remove() of that sequence.
  const std::vector<PlannedSegment>& Plan(absl::Duration now, int32_t prefill_rows_max);

  SchedulerStatistics statistics() const;
  int32_t running() const { return running_; }
  int32_t waiting() const { return static_cast<int32_t>(records_.size()) - running_; }
  int32_t pages_free() const { return pool_.free(); }
  /// Aborts when a page is lost, owned twice, or not what the cache says. Takes time in the pages; Plan() checks the
  /// counts itself at each step, and all of this now and then.
  void Check() const;

 private:
  // What a running sequence can do in the step that is planned. A guide's rows count.
  struct Demand {
    int32_t whole = 0;    // Rows of its denoising segment, with all clean rows in front.
    int32_t prefill = 0;  // Those of them that are prefill; 0 when it is ready to denoise.
    int32_t granted = 0;
    Segment segment;  // Of what is granted; of the whole when it is ready.
  };
  struct Live {
    RunningSequence running;
    std::string cache_salt;
    bool shares = false;        // Its next pages can be in the cache.
    int32_t published = 0;      // Leading pages that are in the cache.
    int32_t pages_wanted = 0;   // A start that failed is not tried again until so many pages are there, …
    uint64_t retry_step = 0;    // … or until this step.
    int32_t pages_awaited = 0;  // Leading pages that it shares with the one it awaits.
  };
  // What ordering looks at, apart from the rest.
  struct Record {
    uint64_t id = 0;
    int64_t progress_micros = 0;  // When it last denoised, or came.
    int64_t deadline_micros = 0;
    int32_t priority = 0;
    int32_t level = 0;  // Its class in this step, ageing considered.
    int32_t share = 0;  // Of its class's shares.
    bool runs = false;
    uint64_t tried_step = 0;  // When it was last about to start.
    uint64_t awaited = 0;     // Who computes pages that it can share; 0: nobody.
    Demand demand;
    std::unique_ptr<Live> live;
  };
  struct OrderKey {
    uint64_t high = 0;
    uint64_t low = 0;  // Ends in the index of the record.
    bool operator<(const OrderKey& other) const { return high != other.high ? high < other.high : low < other.low; }
  };

  Record* FindRecord(uint64_t id);
  FairShares& SharesOf(const Record& record) { return shares_[static_cast<size_t>(record.priority)]; }
  void Age();
  void Favour(Record& record);
  void CollectDemands();
  void Order();
  int32_t OrderLevel(const Record& record) const;
  void OrderByShares();
  Record& Ordered(size_t place);
  Record& RecordOf(const OrderKey& key);
  void GrantRows(int32_t prefill_rows_max);
  void GrantReady(Record& record);
  void GrantChunk(Record& record);
  void Lengthen(Record& record);
  bool Grant(Record& record, int32_t rows);
  void BuildPlan();
  void SettleShares();

  // In scheduler_check.cc.
  void CheckStep() const;
  bool IsPrivate(int32_t page) const;
  // Aborts with the state, without contents, unless `holds`.
  void Require(bool holds, const char* what) const;

  // In scheduler_pages.cc: who holds which pages, and who gets a place.
  int32_t PagesFor(const Sequence& sequence, int32_t keys) const;
  int32_t PagesAtHand() const { return pool_.free() + pool_.cached(); }
  void StartWaiting();
  Record* NextToStart();
  bool Start(Record& record);
  int32_t AcquirePrefix(Live& live);
  bool Awaits(Record& record);
  bool StillAwaits(Record& record);
  int32_t PromisedTo(const RunningSequence& running) const;
  void CountPromised();
  bool ReservePages(Record& record, int32_t keys);
  bool MakeRoom(const Record& wants, int32_t pages);
  bool MayPreempt(const Record& wants, const Record& victim) const;
  bool IsLessUrgent(const Record& a, const Record& b) const;
  void Preempt(Record& victim);
  void Publish(Live& live);
  void LetGo(Live& live);

  const SchedulerLimits limits_;
  PagePool pool_;
  PrefixCache cache_;
  std::array<FairShares, 3> shares_;  // By class: a starved class holds no other back.
  std::vector<Record> records_;       // Ascending ids.
  int32_t running_ = 0;
  uint64_t step_ = 0;
  int64_t now_micros_ = 0;
  uint64_t favoured_ = 0;  // Who keeps its pages until it has finished a block; 0: nobody.
  int32_t favoured_block_ = 0;
  bool prefill_missed_ = false;  // The last step prefilled nothing although somebody wanted to.
  SchedulerStatistics counts_;

  // The step that is planned.
  std::array<int32_t, 3> promised_ = {};        // By class: pages that its running equals and betters will want soon.
  uint64_t promised_step_ = 0;                  // When that was counted.
  std::array<std::vector<uint64_t>, 3> leads_;  // By class and share.
  std::vector<OrderKey> order_;
  size_t ordered_ = 0;          // Leading ones that are in order.
  bool short_of_rows_ = false;  // Blocks that are ready to be denoised do not fit, or just so.
  int32_t fewest_rows_ = 0;     // That anybody can do something with.
  int32_t rows_left_ = 0;
  int32_t prefill_left_ = 0;
  int32_t prefill_share_left_ = 0;  // Of prefill that is not more urgent than every block that is ready.
  int32_t prefilling_ = 0;          // Sequences that prefill …
  int32_t prefill_block_ = 0;       // … and the fewest rows that they can.
  bool prefill_granted_ = false;
  int32_t ready_priority_ = 0;  // The best class among the blocks that are ready.
  std::vector<PlannedSegment> plan_;
  std::vector<Record*> victims_;
  std::vector<int32_t> shed_;  // By page: owners that would be gone. Zero between calls.
};

}  // namespace quicksilver
