#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include "coordinator/core/dispatcher.h"

namespace quicksilver {
namespace {

// A coordinator's core and simulated groups under a seeded schedule. What must hold is checked after every event, from
// outside: the simulation keeps its own books of who is alive and what each group runs.
class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed), dispatcher_(options_) {
    for (uint32_t g = 0; g < kGroups; ++g) Join(g);
  }

  void Run(int events) {
    for (int i = 0; i < events && !testing::Test::HasFailure(); ++i) {
      now_ += absl::Milliseconds(Pick(60));
      OneEvent();
      if (now_ >= dispatcher_.NextTick()) Do(dispatcher_.Tick(now_));
      dispatcher_.CheckInvariants();
      CheckBounds();
    }
  }

  // The world heals and nobody asks for more: everything must come to its end, and nothing may be left.
  void Settle() {
    for (int i = 0; i < 100000 && dispatcher_.requests() > 0 && !testing::Test::HasFailure(); ++i) {
      now_ += absl::Milliseconds(20);
      for (uint32_t g = 0; g < kGroups; ++g) Heal(g);
      if (Worker* worker = AnyWorker(); worker != nullptr && !worker->running.empty()) EndOne(*worker);
      Do(dispatcher_.Tick(now_));
    }
    EXPECT_EQ(dispatcher_.requests(), 0u);
    EXPECT_EQ(dispatcher_.sequences(), 0u);
    EXPECT_EQ(dispatcher_.waiting(), 0u);
    EXPECT_EQ(dispatcher_.running(), 0u);
    EXPECT_EQ(dispatcher_.queue_tokens(), 0u);
    for (const auto& [id, group] : dispatcher_.groups()) {
      EXPECT_EQ(group.sequences, 0u);
      EXPECT_EQ(group.positions, 0u);
    }
    for (const Worker& worker : workers_) EXPECT_TRUE(worker.running.empty()) << "a worker still holds a sequence";
    for (const auto& [id, request] : requests_) EXPECT_EQ(request.ends, 1) << "request " << static_cast<uint64_t>(id);
  }

  int completed() const { return completed_; }
  int failed() const { return failed_; }
  int stale() const { return stale_; }

 private:
  static constexpr uint32_t kGroups = 3;
  struct Asked {
    uint32_t choices = 0;
    std::set<uint32_t> placed;
    std::set<uint32_t> ended;
    int ends = 0;
  };
  struct Worker {
    Connection connection;
    uint64_t epoch = 0;
    bool connected = false;
    bool silent = false;  // Stopped: neither beats nor works, and does not know it.
    uint32_t sequences_max = 0;
    std::map<SequenceId, SubmitSequence> running;
  };

  uint64_t Pick(uint64_t bound) { return random_() % bound; }

  void Join(uint32_t g) {
    Worker& worker = workers_[g];
    worker = {.connection = {GroupId{g}, ++connections_}, .epoch = ++epochs_, .connected = true};
    worker.sequences_max = static_cast<uint32_t>(1 + Pick(4));
    Do(dispatcher_.OnGroupJoined(worker.connection,
                                 {.epoch = worker.epoch,
                                  .model = g == 2 ? "other" : "m",
                                  .fingerprint = Pick(2) == 0 ? "x" : "y",
                                  .sequences_max = worker.sequences_max,
                                  .positions_max = 1000 + Pick(4000)},
                                 now_));
    Do(dispatcher_.OnHeartbeat(worker.connection, {.epoch = worker.epoch, .ready = true}, now_));
  }

  void Heal(uint32_t g) {
    Worker& worker = workers_[g];
    worker.silent = false;
    if (!worker.connected) {
      Join(g);
    } else {
      Do(dispatcher_.OnHeartbeat(worker.connection, {.epoch = worker.epoch, .ready = true}, now_));
    }
  }

  Worker* AnyWorker() {
    Worker& worker = workers_[Pick(kGroups)];
    return worker.connected && !worker.silent ? &worker : nullptr;
  }

  void OneEvent() {
    Worker* worker = AnyWorker();
    switch (Pick(20)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return Submit();
      case 4:
        return CancelSome();
      case 5:
      case 6:
      case 7:
      case 8:
        if (worker != nullptr) Report(*worker);
        return;
      case 9:
      case 10:
      case 11:
        if (worker != nullptr && !worker->running.empty()) EndOne(*worker);
        return;
      case 12:
        if (worker != nullptr && Pick(4) == 0) Lose(*worker);
        return;
      case 13:
        if (worker != nullptr && Pick(6) == 0) worker->silent = true;
        return;
      case 14:
        return ReportLate();
      case 15:
        if (worker != nullptr && Pick(10) == 0) {
          Do(dispatcher_.OnHeartbeat(worker->connection, {.epoch = worker->epoch + 1, .ready = true}, now_));
        }
        return;
      case 16:
        if (worker != nullptr)
          Do(dispatcher_.OnHeartbeat(worker->connection, {.epoch = worker->epoch, .ready = Pick(5) != 0}, now_));
        return;
      case 17:
        if (Worker& lost = workers_[Pick(kGroups)]; !lost.connected) Join(static_cast<uint32_t>(lost.connection.group));
        return;
      default:
        for (Worker& each : workers_) {
          if (each.connected && !each.silent) {
            Do(dispatcher_.OnHeartbeat(each.connection, {.epoch = each.epoch, .ready = true}, now_));
          }
        }
    }
  }

  void Submit() {
    const RequestId id{++last_request_};
    Admission admission{.id = id,
                        .model = Pick(4) == 0 ? "other" : "m",
                        .choices = static_cast<uint32_t>(1 + Pick(4)),
                        .prompt_tokens = static_cast<uint32_t>(1 + Pick(500)),
                        .accepted = now_};
    if (Pick(3) == 0) admission.time_max = absl::Milliseconds(Pick(5000));
    requests_[id].choices = admission.choices;
    Do(dispatcher_.Submit(admission, now_));
  }

  void CancelSome() {
    if (last_request_ == 0) return;
    const RequestId id{1 + Pick(last_request_)};
    const Actions actions = dispatcher_.Cancel(id, now_);
    if (requests_[id].ends == 0) requests_[id].ends = 1;
    Do(actions);
  }

  // A step of a group: all that it says about sequences it still runs must reach their requests, which are alive.
  void Report(Worker& worker) {
    ASSERT_TRUE(dispatcher_.OnResults(worker.connection, worker.epoch, now_));
    for (const auto& [sequence, submit] : worker.running) {
      const std::optional<SequenceOwner> owner = dispatcher_.Owner(worker.connection, sequence);
      ASSERT_TRUE(owner.has_value());
      EXPECT_EQ(owner->request, submit.request);
      EXPECT_EQ(owner->choice, submit.choice);
      EXPECT_EQ(requests_[owner->request].ends, 0) << "an event after the end";
    }
  }

  void EndOne(Worker& worker) {
    auto it = worker.running.begin();
    std::advance(it, static_cast<long>(Pick(worker.running.size())));
    const SubmitSequence sequence = it->second;
    Do(dispatcher_.OnProgress(sequence.sequence, 1, now_));
    if (Pick(10) == 0) return Do(dispatcher_.Fail(sequence.request, InternalError("numerical_error", "NaN"), now_));
    requests_[sequence.request].ended.insert(sequence.choice);
    if (Pick(4) == 0) return Do(dispatcher_.EndSequence(sequence.sequence, 0, now_));  // A stop string.
    worker.running.erase(it);
    Do(dispatcher_.OnSequenceEnded(sequence.sequence, 0, now_));
  }

  void Lose(Worker& worker) {
    BreakStream(worker);
    Do(dispatcher_.OnGroupLost(worker.connection, now_));
  }

  void BreakStream(Worker& worker) {
    worker.connected = false;
    for (const auto& [sequence, submit] : worker.running) {
      late_.push_back(submit);
      requests_[submit.request].placed.erase(submit.choice);
    }
    worker.running.clear();
  }

  // A paused group wakes up and speaks of what it ran before it was given up.
  void ReportLate() {
    if (late_.empty()) return;
    const SubmitSequence& submit = late_[Pick(late_.size())];
    EXPECT_FALSE(dispatcher_.OnResults(submit.to, 1 + Pick(epochs_), now_));
    EXPECT_FALSE(dispatcher_.Owner(submit.to, submit.sequence).has_value());
    const Worker& now_there = workers_[static_cast<uint32_t>(submit.to.group)];
    EXPECT_FALSE(dispatcher_.Owner(now_there.connection, submit.sequence).has_value());
    ++stale_;
  }

  void Do(const Actions& actions) {
    for (const Action& action : actions) std::visit([this](const auto& one) { Carry(one); }, action);
  }

  void Carry(const SubmitSequence& submit) {
    Worker& worker = workers_[static_cast<uint32_t>(submit.to.group)];
    Asked& asked = requests_[submit.request];
    EXPECT_TRUE(worker.connected) << "work for a lost group";
    EXPECT_EQ(worker.connection, submit.to);
    EXPECT_EQ(asked.ends, 0) << "work for a request that is over";
    EXPECT_LT(submit.choice, asked.choices);
    EXPECT_TRUE(asked.placed.insert(submit.choice).second || submit.cause == SubmitCause::kMoved)
        << "a choice was placed twice";
    EXPECT_TRUE(worker.running.emplace(submit.sequence, submit).second);
    EXPECT_LE(worker.running.size(), worker.sequences_max);
  }

  void Carry(const CancelSequence& cancel) {
    Worker& worker = workers_[static_cast<uint32_t>(cancel.to.group)];
    EXPECT_EQ(worker.connection, cancel.to);
    EXPECT_EQ(worker.running.erase(cancel.sequence), 1u) << "a cancel for what the group does not run";
  }

  void Carry(const FailRequest& failed) {
    EXPECT_EQ(++requests_[failed.request].ends, 1) << "a second end";
    EXPECT_GE(failed.error.http_status, 400);
    if (failed.error.http_status == 503) {
      EXPECT_GE(failed.error.retry_after_seconds, 1);
    }
    ++failed_;
  }

  void Carry(const CompleteRequest& complete) {
    Asked& asked = requests_[complete.request];
    EXPECT_EQ(++asked.ends, 1) << "a second end";
    EXPECT_EQ(asked.ended.size(), asked.choices) << "complete before its last choice";
    ++completed_;
  }

  void Carry(const DropGroup& drop) { BreakStream(workers_[static_cast<uint32_t>(drop.group.group)]); }

  void CheckBounds() {
    EXPECT_LE(dispatcher_.queue_tokens(), options_.queue_tokens_max);
    size_t running = 0;
    for (const Worker& worker : workers_) running += worker.running.size();
    EXPECT_EQ(dispatcher_.sequences(), running) << "the books differ";
    EXPECT_LE(dispatcher_.waiting(), options_.queue_requests_max);
    size_t alive = 0;
    for (const auto& [id, request] : requests_) alive += request.ends == 0 ? 1 : 0;
    EXPECT_EQ(dispatcher_.requests(), alive);
    EXPECT_GE(dispatcher_.NextTick(), now_);
  }

  const DispatcherOptions options_ = {.queue_requests_max = 6,
                                      .queue_tokens_max = 3000,
                                      .queue_time_max = absl::Seconds(3),
                                      .request_time_max = absl::Seconds(8),
                                      .lease = absl::Seconds(2)};
  std::mt19937_64 random_;
  Dispatcher dispatcher_;
  absl::Duration now_ = absl::Seconds(1);
  std::vector<Worker> workers_{kGroups};
  std::map<RequestId, Asked> requests_;
  std::vector<SubmitSequence> late_;
  uint64_t connections_ = 0, epochs_ = 0, last_request_ = 0;
  int completed_ = 0, failed_ = 0, stale_ = 0;
};

TEST(DispatcherSimulationTest, EveryRequestEndsOnceUnderAnySchedule) {
  int completed = 0, failed = 0, stale = 0;
  for (uint64_t seed = 1; seed <= 10000; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Simulation simulation(seed);
    simulation.Run(300);
    simulation.Settle();
    if (HasFailure()) return;
    completed += simulation.completed();
    failed += simulation.failed();
    stale += simulation.stale();
  }
  // The schedules are no use when they never reach one of these.
  EXPECT_GT(completed, 1000);
  EXPECT_GT(failed, 1000);
  EXPECT_GT(stale, 1000);
}

}  // namespace
}  // namespace quicksilver
