#include "tests/simulation/history.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/random.h"

namespace quicksilver::simulation {
namespace {

// What a deadline may be missed by.
constexpr absl::Duration kDeadlineSlack = absl::Milliseconds(50);

}  // namespace

History::History(World& world, const Plan& plan) : world_(world), plan_(plan) {
  for (const RequestPlan& request : plan.requests) {
    Request& entry = requests_[request.number];
    entry.plan = &request;
    entry.tokens.resize(static_cast<size_t>(request.choices));
    entry.ends.resize(static_cast<size_t>(request.choices), ChoiceEnd::kNone);
  }
  open_ = requests_.size();
}

bool History::alive(uint64_t number) const {
  const Request& request = requests_.at(number);
  return request.sent > absl::ZeroDuration() && request.outcome == Outcome::kNone;
}

void History::Sent(const RequestPlan& plan) {
  requests_.at(plan.number).sent = world_.now();
  world_.Note(plan.number, "sent");
}

void History::Placed(uint64_t number, const std::string& build) {
  Request& request = requests_.at(number);
  if (request.build == build) return;
  request.build = build;
  request.answers.clear();
  for (int choice = 0; choice < request.plan->choices; ++choice) {
    request.answers.push_back(RunAlone(plan_, *request.plan, choice, build));
  }
}

void History::Committed(uint64_t number, int choice, int index, int32_t token) {
  const Request& request = requests_.at(number);
  if (request.paced()) return;
  const std::vector<int32_t>& expected = request.answers[static_cast<size_t>(choice)].tokens;
  const bool within = index >= 0 && static_cast<size_t>(index) < expected.size();
  if (within && expected[static_cast<size_t>(index)] == token) return;
  world_.Violate(number, "bytes",
                 absl::StrCat("choice ", choice, " has token ", token, " at answer position ", index, ", undisturbed ",
                              within ? absl::StrCat(expected[static_cast<size_t>(index)]) : "none"));
}

void History::Final(uint64_t number, int choice, int32_t token) {
  Request& request = requests_.at(number);
  if (request.outcome != Outcome::kNone) return world_.Violate(number, "late", "a token after the end");
  if (request.ends[static_cast<size_t>(choice)] != ChoiceEnd::kNone) {
    return world_.Violate(number, "late", absl::StrCat("a token after the end of choice ", choice));
  }
  std::vector<int32_t>& tokens = request.tokens[static_cast<size_t>(choice)];
  tokens.push_back(token);
  if (!request.paced()) Committed(number, choice, static_cast<int>(tokens.size()) - 1, token);
}

void History::ChoiceEnded(uint64_t number, int choice, ChoiceEnd reason) {
  Request& request = requests_.at(number);
  ChoiceEnd& end = request.ends[static_cast<size_t>(choice)];
  if (end != ChoiceEnd::kNone || request.outcome != Outcome::kNone) {
    return world_.Violate(number, "second end", absl::StrCat("choice ", choice, " ends again"));
  }
  // A stop string is the client's own affair: nothing more comes, what came is a prefix.
  end = reason;
  if (world_.tracing()) {
    world_.Note(number,
                absl::StrCat("choice ", choice, " ends with ", request.tokens[static_cast<size_t>(choice)].size(),
                             " tokens, reason ", static_cast<int>(reason)));
  }
  CheckAnswer(request, choice);
}

void History::CheckAnswer(const Request& request, int choice) {
  const ChoiceEnd reason = request.ends[static_cast<size_t>(choice)];
  const size_t count = request.tokens[static_cast<size_t>(choice)].size();
  const bool whole = reason == ChoiceEnd::kStop || reason == ChoiceEnd::kLength;
  if (reason == ChoiceEnd::kDeadline && request.plan->target == absl::ZeroDuration()) {
    return world_.Violate(request.plan->number, "deadline", "ended early without a target");
  }
  if (!whole || request.paced()) return;
  const Answer& answer = request.answers[static_cast<size_t>(choice)];
  const size_t expected = static_cast<size_t>(answer.final_tokens);
  if (request.plan->stop_after >= 0 && choice == 0 && count <= expected) return;
  if (count != expected || reason != answer.end) {
    world_.Violate(
        request.plan->number, "bytes",
        absl::StrCat("choice ", choice, " ends with ", count, " tokens and reason ", static_cast<int>(reason),
                     ", undisturbed with ", expected, " and ", static_cast<int>(answer.end)));
  }
}

void History::End(uint64_t number, Outcome outcome, const std::string& code) {
  Request& request = requests_.at(number);
  if (request.outcome != Outcome::kNone) {
    return world_.Violate(number, "second end", absl::StrCat("ends again", code.empty() ? "" : " with ", code));
  }
  request.outcome = outcome;
  request.code = code;
  request.ended = world_.now();
  --open_;
  counters_.completed += outcome == Outcome::kCompleted;
  counters_.cancelled += outcome == Outcome::kCancelled;
  counters_.reset += outcome == Outcome::kReset;
  counters_.failed += outcome == Outcome::kFailed;
  counters_.overloaded += code == "server_is_overloaded";
  counters_.deadlines += code == "deadline_exceeded";
  counters_.worker_lost += code == "worker_lost";
  counters_.numerical += code == "numerical_error";
  counters_.limited += code == "rate_limit_exceeded";
  world_.Digest(
      Mix(number, static_cast<uint64_t>(outcome), static_cast<uint64_t>(absl::ToInt64Microseconds(world_.now()))));
  CheckDeadline(request);
}

void History::CheckDeadline(const Request& request) {
  const RequestPlan& plan = *request.plan;
  const absl::Duration took = request.ended - request.sent;
  if (took > plan.time_max + kDeadlineSlack) {
    world_.Violate(plan.number, "deadline",
                   absl::StrCat("ended after ", absl::FormatDuration(took), ", wanted within ",
                                absl::FormatDuration(plan.time_max)));
  }
  // A worker that cannot be heard any more costs the grace, not more.
  if (plan.target > absl::ZeroDuration() && took > plan.target + plan_.target_grace + kDeadlineSlack) {
    world_.Violate(plan.number, "target",
                   absl::StrCat("ended after ", absl::FormatDuration(took), ", wanted within ",
                                absl::FormatDuration(plan.target)));
  }
}

void History::Completed(uint64_t number) {
  const Request& request = requests_.at(number);
  for (size_t choice = 0; choice < request.ends.size(); ++choice) {
    if (request.ends[choice] == ChoiceEnd::kNone) {
      world_.Violate(number, "early end", absl::StrCat("complete before the end of choice ", choice));
    }
  }
  world_.Note(number, "completed");
  End(number, Outcome::kCompleted, "");
}

void History::Failed(uint64_t number, const std::string& code) {
  world_.Note(number, absl::StrCat("failed: ", code));
  End(number, Outcome::kFailed, code);
  CheckFailure(requests_.at(number));
}

// Neighbours of a poisonous request survive, as far as their coordinator can tell it from them: it may not when the
// poison comes from another one, or kills several groups at a time.
bool History::MayLose(const Request& request) const {
  if (!plan_.faults.empty() || request.plan->poison_at >= 0) return true;
  return std::any_of(requests_.begin(), requests_.end(), [&](const auto& other) {
    const RequestPlan& plan = *other.second.plan;
    return plan.poison_at >= 0 && (plan.choices > 1 || plan.coordinator != request.plan->coordinator);
  });
}

void History::CheckFailure(const Request& request) {
  const RequestPlan& plan = *request.plan;
  const absl::Duration took = request.ended - request.sent;
  bool excused = false;
  if (request.code == "server_is_overloaded" || request.code == "no_ready_worker") {
    // Turned away before any work.
    excused = std::all_of(request.tokens.begin(), request.tokens.end(), [](const auto& t) { return t.empty(); });
  } else if (request.code == "deadline_exceeded") {
    // What cannot be done in time is not begun.
    excused = request.build.empty() ||
              took >= std::min(plan.time_max, plan.target > absl::ZeroDuration() ? plan.target : plan.time_max);
  } else if (request.code == "worker_lost") {
    // Without a loss it was given back by a group that drained, and no other one came.
    excused = request.losses > 0 ? MayLose(request) : !plan_.faults.empty();
  } else if (request.code == "numerical_error") {
    excused = plan.nan_at >= 0;
  } else if (request.code == "rate_limit_exceeded") {
    excused = plan_.tenant_requests_max > 0;
  }
  if (!excused) {
    world_.Violate(plan.number, "failure",
                   absl::StrCat("`", request.code, "` after ", absl::FormatDuration(took), " and ", request.losses,
                                " lost groups"));
  }
}

void History::CheckPoison() {
  for (const auto& [number, request] : requests_) {
    if (request.plan->poison_at < 0) continue;
    // Each choice three times, and once more if it had come further than before the first time.
    const int most = 4 * request.plan->choices;
    if (request.kills > most) {
      world_.Violate(number, "poison", absl::StrCat("killed ", request.kills, " groups, at most ", most));
    }
  }
}

void Counters::Add(const Counters& other) {
  completed += other.completed;
  failed += other.failed;
  cancelled += other.cancelled;
  reset += other.reset;
  overloaded += other.overloaded;
  deadlines += other.deadlines;
  worker_lost += other.worker_lost;
  numerical += other.numerical;
  limited += other.limited;
  lost += other.lost;
  moved += other.moved;
  resumed += other.resumed;
  stale += other.stale;
  preemptions += other.preemptions;
  cached_tokens += other.cached_tokens;
  paced_steps += other.paced_steps;
  targets_met += other.targets_met;
  unserved_max = std::max(unserved_max, other.unserved_max);
  peace_max = std::max(peace_max, other.peace_max);
}

std::string Counters::ToString() const {
  return absl::StrCat(completed, " completed, ", cancelled, " cancelled, ", reset, " reset, ", failed, " failed (",
                      overloaded, " overload, ", deadlines, " deadline, ", limited, " limit, ", worker_lost,
                      " worker lost, ", numerical, " numerical); ", lost, " sequences lost, ", moved, " moved, ",
                      resumed, " with a checkpoint, ", stale, " stale results dropped, ", preemptions, " preemptions, ",
                      cached_tokens, " cached tokens, ", paced_steps, " paced steps, ", targets_met,
                      " ended at their target; at most ", absl::FormatDuration(unserved_max),
                      " without a row, silence after ", absl::FormatDuration(peace_max));
}

void History::Cancelled(uint64_t number) {
  world_.Note(number, "cancelled by its client");
  End(number, Outcome::kCancelled, "");
}

void History::Reset(uint64_t number) {
  world_.Note(number, "connection reset");
  End(number, Outcome::kReset, "");
}

}  // namespace quicksilver::simulation
