#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/simulation/answer.h"
#include "tests/simulation/plan.h"
#include "tests/simulation/world.h"

namespace quicksilver::simulation {

/// How a request ended for its client.
enum class Outcome { kNone, kCompleted, kFailed, kCancelled, kReset };

/// How often something happened, to see that runs reach it.
struct Counters {
  uint64_t completed = 0, failed = 0, cancelled = 0, reset = 0;
  uint64_t overloaded = 0, deadlines = 0, worker_lost = 0, numerical = 0, limited = 0;
  uint64_t lost = 0;     ///< Sequences placed again because their group was lost, …
  uint64_t moved = 0;    ///< … because it drains or is full, …
  uint64_t resumed = 0;  ///< … with a checkpoint.
  uint64_t stale = 0;    ///< Results that were dropped.
  uint64_t preemptions = 0, cached_tokens = 0, paced_steps = 0, targets_met = 0;

  absl::Duration unserved_max;  ///< Longest time that a live sequence of a running group went without a row.
  absl::Duration peace_max;     ///< Longest time from the end of the faults to silence.

  void Add(const Counters& other);
  std::string ToString() const;
};

/// What the clients of a run saw, and whether it is what they were promised.
class History {
 public:
  struct Request {
    const RequestPlan* plan = nullptr;
    Outcome outcome = Outcome::kNone;
    std::string code;  ///< Of kFailed.
    absl::Duration sent;
    absl::Duration ended;
    std::string build;                         ///< Of the groups that served it.
    int losses = 0;                            ///< Groups that were lost under one of its sequences.
    int kills = 0;                             ///< Groups that it killed.
    std::vector<std::vector<int32_t>> tokens;  ///< Final ones, by choice.
    std::vector<ChoiceEnd> ends;               ///< By choice.
    std::vector<Answer> answers;               ///< By choice, of an undisturbed run; made when the build is known.

    bool paced() const { return plan->target > absl::ZeroDuration(); }  ///< Its tokens depend on the time.
  };

  /// `world` and `plan` outlive this.
  History(World& world, const Plan& plan);

  void Sent(const RequestPlan& plan);
  /// It was placed on a group of this build.
  void Placed(uint64_t number, const std::string& build);
  /// A position of the answer was written, whether final or not. Never changed afterwards.
  void Committed(uint64_t number, int choice, int index, int32_t token);
  /// The next token of a choice is final, and goes to the client.
  void Final(uint64_t number, int choice, int32_t token);
  void GroupLost(uint64_t number) { ++requests_.at(number).losses; }
  /// The end of a choice. `kNone`: a stop string was met.
  void ChoiceEnded(uint64_t number, int choice, ChoiceEnd reason);
  void Completed(uint64_t number);
  void Failed(uint64_t number, const std::string& code);
  void Cancelled(uint64_t number);
  void Reset(uint64_t number);

  /// A poisonous request killed a group.
  void Killed(uint64_t number) { ++requests_.at(number).kills; }
  /// None of them killed more than it may. To be called at the end.
  void CheckPoison();

  Counters& counters() { return counters_; }

  /// Nobody waits any more.
  bool AllEnded() const { return open_ == 0; }
  size_t open() const { return open_; }
  const std::map<uint64_t, Request>& requests() const { return requests_; }
  bool alive(uint64_t number) const;

 private:
  void End(uint64_t number, Outcome outcome, const std::string& code);
  void CheckAnswer(const Request& request, int choice);
  void CheckDeadline(const Request& request);
  void CheckFailure(const Request& request);
  bool MayLose(const Request& request) const;

  World& world_;
  const Plan& plan_;
  std::map<uint64_t, Request> requests_;
  size_t open_ = 0;
  Counters counters_;
};

}  // namespace quicksilver::simulation
