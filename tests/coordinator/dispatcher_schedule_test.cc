#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/dispatcher_support.h"

namespace quicksilver {
namespace {

constexpr uint32_t kGroups = 5;

// Groups without an engine under a seeded schedule of everything that the dispatcher can hear. Its books are recounted
// after each event, and the schedule keeps its own of who is alive and what each group runs.
class Schedule {
 public:
  explicit Schedule(uint64_t seed) : random_(seed), dispatcher_(Options()) {
    for (uint32_t g = 0; g < kGroups; ++g) Join(g);
  }

  void Run(int events) {
    for (int i = 0; i < events && !testing::Test::HasFailure(); ++i) {
      now_ += absl::Milliseconds(Pick(80));
      OneEvent();
      if (now_ >= dispatcher_.NextTick()) Do(dispatcher_.Tick(now_));
      EXPECT_GT(dispatcher_.NextTick(), now_);
      dispatcher_.CheckInvariants();
      size_t running = 0;
      for (const Group& group : groups_) running += group.running.size();
      EXPECT_EQ(dispatcher_.sequences(), running);
      EXPECT_EQ(dispatcher_.requests(), alive_.size());
    }
  }

  // All groups are well and nobody asks for more: everything must end, and nothing may be left.
  void Settle() {
    for (int i = 0; i < 20000 && dispatcher_.requests() > 0 && !testing::Test::HasFailure(); ++i) {
      now_ += absl::Milliseconds(20);
      for (Group& group : groups_) {
        if (!group.connected) Join(static_cast<uint32_t>(&group - groups_.data()));
        group.silent = false;
        Beat(group, /*ready=*/true, /*draining=*/false);
      }
      if (Group* group = Busy()) End(*group);
      if (now_ >= dispatcher_.NextTick()) Do(dispatcher_.Tick(now_));
    }
    dispatcher_.CheckInvariants();
    EXPECT_EQ(dispatcher_.requests(), 0u);
    EXPECT_EQ(dispatcher_.sequences(), 0u);
    EXPECT_EQ(dispatcher_.queue_tokens(), 0u);
    const TenantUsage total = dispatcher_.tenants().Total();
    EXPECT_EQ(total.reserved.input + total.reserved.output, 0u);
  }

  std::map<std::string, int> seen;  // Ends by code, submits by cause.

 private:
  struct Group {
    Connection connection;
    std::string fingerprint;
    uint64_t epoch = 0;
    bool connected = false;
    bool silent = false;
    uint32_t sequences_max = 0;
    std::map<SequenceId, SubmitSequence> running;
  };

  static DispatcherOptions Options() {
    DispatcherOptions options{.queue_requests_max = 8,
                              .queue_tokens_max = 4000,
                              .queue_time_max = absl::Seconds(3),
                              .request_time_max = absl::Seconds(20),
                              .lease = absl::Seconds(2),
                              .resume_wait = absl::Seconds(4),
                              .ageing = absl::Seconds(1)};
    options.tenants.tenants["tenant 1"] = {.weight = 2, .concurrent_requests_max = 6, .queue_share_max = 0.5};
    options.tenants.tenants["tenant 2"] = {.requests_per_minute = 60, .output_tokens_per_minute = 10000};
    return options;
  }

  uint64_t Pick(uint64_t bound) { return random_() % bound; }

  void Join(uint32_t g) {
    Group& group = groups_[g];
    group = {.connection = {GroupId{g}, ++connections_},
             .fingerprint = g < 3 ? "x" : "y",
             .epoch = ++epochs_,
             .connected = true,
             .silent = false,
             .sequences_max = static_cast<uint32_t>(1 + Pick(4)),
             .running = {}};
    Do(dispatcher_.OnGroupJoined(group.connection, Facts(group.sequences_max, group.fingerprint, group.epoch), now_));
    Beat(group, true, false);
  }

  void Beat(Group& group, bool ready, bool draining) {
    if (!group.connected || group.silent) return;
    Do(dispatcher_.OnHeartbeat(group.connection,
                               {.epoch = group.epoch,
                                .ready = ready,
                                .draining = draining,
                                .sequences_running = static_cast<uint32_t>(group.running.size()),
                                .sequences_waiting = static_cast<uint32_t>(Pick(8) == 0 ? 1 : 0),
                                .positions_free = 10000 - 400 * group.running.size(),
                                .step_time = absl::Milliseconds(10 + Pick(10))},
                               now_));
  }

  Group* Busy() {
    Group& group = groups_[Pick(kGroups)];
    return group.connected && !group.silent && !group.running.empty() ? &group : nullptr;
  }

  void OneEvent() {
    Group& group = groups_[Pick(kGroups)];
    Group* busy = Busy();
    const uint64_t event = Pick(24);
    if (event < 7) {
      Submit();
    } else if (event < 11) {
      if (busy != nullptr) Do(dispatcher_.OnProgress(Any(*busy).sequence, static_cast<uint32_t>(Pick(30)), now_));
    } else if (event < 14) {
      if (busy != nullptr) End(*busy);
    } else if (event == 14) {
      if (busy != nullptr) Return(*busy);
    } else if (event == 15) {
      if (!alive_.empty() && Pick(2) == 0) Cancel();
    } else if (event == 16) {
      if (group.connected && Pick(2) == 0) Lose(group);
    } else if (event == 17) {
      group.silent = group.silent || Pick(6) == 0;
    } else if (event == 18) {
      Beat(group, Pick(6) != 0, Pick(4) == 0);
    } else if (event == 19) {
      if (!group.connected) Join(static_cast<uint32_t>(&group - groups_.data()));
    } else {
      for (Group& each : groups_) Beat(each, true, false);
    }
  }

  void Submit() {
    Admission admission{.id = RequestId{++last_request_},
                        .model = "m",
                        .tenant = absl::StrCat("tenant ", Pick(4)),
                        .priority = static_cast<Priority>(Pick(3)),
                        .choices = static_cast<uint32_t>(1 + Pick(3)),
                        .prompt_tokens = static_cast<uint32_t>(1 + Pick(300)),
                        .max_tokens = 100,
                        .accepted = now_,
                        .prefix = {Pick(4), 100 + Pick(8)}};
    if (Pick(4) == 0) admission.time_max = absl::Milliseconds(Pick(5000));
    if (Pick(8) == 0) admission.latency_target = absl::Milliseconds(Pick(3000));
    alive_[admission.id].choices = admission.choices;
    Do(dispatcher_.Submit(admission, now_));
  }

  SubmitSequence Any(Group& group) {
    return std::next(group.running.begin(), static_cast<int64_t>(Pick(group.running.size())))->second;
  }

  void End(Group& group) {
    const SubmitSequence sequence = Any(group);
    if (Pick(10) == 0) return Do(dispatcher_.Fail(sequence.request, InternalError("numerical_error", "NaN"), now_));
    alive_.at(sequence.request).ended.insert(sequence.choice);
    if (Pick(3) == 0) return Do(dispatcher_.EndSequence(sequence.sequence, 100, now_));
    group.running.erase(sequence.sequence);
    Do(dispatcher_.OnSequenceEnded(sequence.sequence, 100, now_));
  }

  void Return(Group& group) {
    const SubmitSequence sequence = Any(group);
    group.running.erase(sequence.sequence);
    Do(dispatcher_.OnSequenceReturned(sequence.sequence, now_));
  }

  void Cancel() {
    const RequestId id = std::next(alive_.begin(), static_cast<int64_t>(Pick(alive_.size())))->first;
    alive_.erase(id);
    Do(dispatcher_.Cancel(id, now_));
  }

  void Lose(Group& group) {
    group.connected = false;
    group.running.clear();
    Do(Pick(4) == 0 ? dispatcher_.OnGroupRemoved(group.connection.group, now_)
                    : dispatcher_.OnGroupLost(group.connection, now_));
  }

  void Do(const Actions& actions) {
    for (const Action& action : actions) std::visit([this](const auto& one) { Carry(one); }, action);
  }

  void Carry(const SubmitSequence& submit) {
    Group& group = groups_[static_cast<uint32_t>(submit.to.group)];
    ASSERT_TRUE(alive_.contains(submit.request)) << "work for a request that is over";
    Asked& asked = alive_.at(submit.request);
    EXPECT_TRUE(group.connected && group.connection == submit.to) << "work for a lost group";
    EXPECT_FALSE(asked.ended.contains(submit.choice)) << "work for a choice that is over";
    EXPECT_TRUE(ids_.insert(submit.sequence).second) << "a sequence id was used twice";
    if (submit.resume) {
      EXPECT_TRUE(asked.fingerprint.empty() || asked.fingerprint == group.fingerprint);
    }
    asked.fingerprint = group.fingerprint;
    group.running.emplace(submit.sequence, submit);
    EXPECT_LE(group.running.size(), group.sequences_max);
    static constexpr const char* kCauses[] = {"new", "lost", "moved", "returned"};
    ++seen[kCauses[static_cast<int>(submit.cause)]];
  }

  void Carry(const CancelSequence& cancel) {
    Group& group = groups_[static_cast<uint32_t>(cancel.to.group)];
    EXPECT_EQ(group.connection, cancel.to);
    EXPECT_EQ(group.running.erase(cancel.sequence), 1u) << "a cancel for what the group does not run";
  }

  void Carry(const FailRequest& failed) {
    EXPECT_EQ(alive_.erase(failed.request), 1u) << "a second end";
    if (failed.error.http_status == 503 || failed.error.http_status == 429) {
      EXPECT_GE(failed.error.retry_after_seconds, 1);
    }
    ++seen[failed.error.code];
  }

  void Carry(const CompleteRequest& complete) {
    ASSERT_TRUE(alive_.contains(complete.request)) << "a second end";
    EXPECT_EQ(alive_.at(complete.request).ended.size(), alive_.at(complete.request).choices);
    alive_.erase(complete.request);
    ++seen["complete"];
  }

  void Carry(const DropGroup& drop) {
    Group& group = groups_[static_cast<uint32_t>(drop.group.group)];
    group.connected = false;
    group.running.clear();
    ++seen["dropped"];
  }

  struct Asked {
    uint32_t choices = 0;
    std::set<uint32_t> ended;
    std::string fingerprint;
  };

  std::mt19937_64 random_;
  Dispatcher dispatcher_;
  absl::Duration now_ = absl::Seconds(1);
  std::vector<Group> groups_{kGroups};
  std::map<RequestId, Asked> alive_;
  std::set<SequenceId> ids_;
  uint64_t connections_ = 0, epochs_ = 0, last_request_ = 0;
};

TEST(DispatcherScheduleTest, TheBooksAreRightAndEveryRequestEndsOnceUnderAnySchedule) {
  std::map<std::string, int> seen;
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Schedule schedule(seed);
    schedule.Run(400);
    schedule.Settle();
    if (HasFailure()) return;
    for (const auto& [what, count] : schedule.seen) seen[what] += count;
  }
  // The schedules are no use when they never reach one of these.
  for (const char* what : {"new", "lost", "moved", "complete", "dropped", "worker_lost", "no_ready_worker",
                           "server_is_overloaded", "deadline_exceeded", "rate_limit_exceeded", "numerical_error"}) {
    EXPECT_GT(seen[what], 100) << what;
  }
}

}  // namespace
}  // namespace quicksilver
