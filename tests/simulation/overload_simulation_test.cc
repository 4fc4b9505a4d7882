#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "coordinator/core/dispatcher.h"

namespace quicksilver {
namespace {

using ::testing::SizeIs;

constexpr uint32_t kSlots = 8;
constexpr double kSequenceSeconds = 1.0;
constexpr double kCapacity = kSlots / kSequenceSeconds;  // Requests a second.
constexpr absl::Duration kQueueTimeMax = absl::Seconds(3);

// One group under an open-loop stream of requests, on a virtual clock.
class Overload {
 public:
  explicit Overload(uint64_t seed) : random_(seed), dispatcher_({.queue_time_max = kQueueTimeMax}) {
    dispatcher_.OnGroupJoined(kGroup, {.epoch = 1, .model = "m", .sequences_max = kSlots, .positions_max = 1}, now_);
    dispatcher_.OnHeartbeat(kGroup, {.epoch = 1, .ready = true}, now_);
  }

  void Run(absl::Duration time, double requests_per_second) {
    std::exponential_distribution<> gap(std::max(requests_per_second, 1e-9));
    const absl::Duration end = now_ + time;
    absl::Duration next_arrival = now_ + absl::Seconds(gap(random_));
    while (now_ < end) {
      absl::Duration next = std::min({end, next_arrival, last_beat_ + absl::Seconds(1), dispatcher_.NextTick()});
      if (!running_.empty()) next = std::min(next, running_.begin()->first);
      now_ = next;
      Do(dispatcher_.Tick(now_));
      if (now_ >= last_beat_ + absl::Seconds(1)) {
        last_beat_ = now_;
        Do(dispatcher_.OnHeartbeat(kGroup, {.epoch = 1, .ready = true}, now_));
      }
      if (!running_.empty() && running_.begin()->first <= now_) {
        const SequenceId sequence = running_.begin()->second;
        running_.erase(running_.begin());
        Do(dispatcher_.OnSequenceEnded(sequence, 0, now_));
      }
      if (now_ >= next_arrival) {
        next_arrival = now_ + absl::Seconds(gap(random_));
        const RequestId id{++asked_};
        asked_at_[id] = now_;
        Do(dispatcher_.Submit({.id = id, .model = "m", .prompt_tokens = 64, .accepted = now_}, now_));
      }
    }
  }

  uint64_t asked_ = 0;
  int completed_ = 0;
  int refused_at_once_ = 0;
  int timed_out_in_queue_ = 0;
  std::set<int> retry_after_;
  absl::Duration longest_wait_;
  Dispatcher& dispatcher() { return dispatcher_; }

 private:
  static constexpr Connection kGroup{GroupId{0}, 1};

  void Do(const Actions& actions) {
    std::uniform_real_distribution<> spread(0.5, 1.5);
    for (const Action& action : actions) {
      if (const auto* submit = std::get_if<SubmitSequence>(&action)) {
        longest_wait_ = std::max(longest_wait_, now_ - asked_at_.at(submit->request));
        running_.emplace(now_ + absl::Seconds(kSequenceSeconds * spread(random_)), submit->sequence);
      } else if (const auto* failed = std::get_if<FailRequest>(&action)) {
        EXPECT_EQ(failed->error.http_status, 503);
        retry_after_.insert(failed->error.retry_after_seconds);
        ++(asked_at_.at(failed->request) == now_ ? refused_at_once_ : timed_out_in_queue_);
      } else if (std::get_if<CompleteRequest>(&action) != nullptr) {
        ++completed_;
      }
    }
  }

  std::mt19937_64 random_;
  absl::Duration now_ = absl::Seconds(1);
  absl::Duration last_beat_ = now_;
  Dispatcher dispatcher_;
  std::multimap<absl::Duration, SequenceId> running_;  // By the time of their end.
  std::map<RequestId, absl::Duration> asked_at_;
};

TEST(OverloadSimulationTest, FiveTimesTheCapacityCostsNeitherGoodputNorTheQueueTime) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Overload overload(seed);
    overload.Run(absl::Minutes(5), 5 * kCapacity);
    EXPECT_GE(overload.completed_, 0.9 * kCapacity * 300);
    EXPECT_LE(overload.longest_wait_, kQueueTimeMax);
    // Those who cannot be served hear so at once, not at the end of a wait in vain.
    EXPECT_GE(overload.refused_at_once_, 20 * overload.timed_out_in_queue_);
    EXPECT_LE(overload.dispatcher().waiting(), 2 * kCapacity * absl::ToDoubleSeconds(kQueueTimeMax));
    EXPECT_GE(*overload.retry_after_.begin(), 1);
    EXPECT_LE(*overload.retry_after_.rbegin(), 45);
    EXPECT_GT(overload.retry_after_.size(), 1u) << "clients told to come back must not come together";

    overload.Run(absl::Seconds(10), 0);
    EXPECT_EQ(overload.dispatcher().requests(), 0u) << "ten seconds later nothing is left of it";
  }
}

TEST(OverloadSimulationTest, BelowTheCapacityNobodyIsRefused) {
  Overload overload(/*seed=*/1);
  overload.Run(absl::Minutes(5), 0.7 * kCapacity);
  EXPECT_EQ(overload.refused_at_once_ + overload.timed_out_in_queue_, 0);
  EXPECT_GE(overload.completed_, static_cast<int>(overload.asked_) - static_cast<int>(2 * kSlots));
}

}  // namespace
}  // namespace quicksilver
