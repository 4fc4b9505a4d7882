#include "tests/simulation/cost_model.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <list>
#include <queue>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "coordinator/core/dispatcher.h"
#include "coordinator/core/prefix_chain.h"
#include "tests/simulation/random.h"

namespace quicksilver::simulation {
namespace {

constexpr absl::Duration kBeat = absl::Seconds(1);

struct Request {
  int prefix = 0;
  int steps_left = 0;
  absl::Duration sent;
  absl::Duration started = absl::InfiniteDuration();
};

struct Running {
  SequenceId sequence{};
  size_t request = 0;
  int prefill_left = 0;
};

struct Group {
  std::deque<Running> waiting;
  std::vector<Running> running;
  bool stepping = false;
  int64_t positions = 0;  // Of the running ones.
  int64_t prefill_planned = 0;
  absl::Duration step_time;
  // The prefix cache: the latest used is in front.
  std::list<int> recent;
  std::unordered_map<int, std::list<int>::iterator> cached;
};

absl::Duration Percentile(std::vector<absl::Duration>& values, double share) {
  if (values.empty()) return absl::ZeroDuration();
  const size_t index = std::min(values.size() - 1, static_cast<size_t>(share * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(index), values.end());
  return values[index];
}

class CostModel {
 public:
  explicit CostModel(const CostOptions& options)
      : options_(options),
        random_(options.seed),
        dispatcher_({.queue_time_max = options.queue_time_max}),
        groups_(static_cast<size_t>(options.groups)) {
    // Zipf's law over the prefixes.
    double sum = 0;
    for (int i = 1; i <= options.prefixes; ++i) zipf_.push_back(sum += 1.0 / i);
  }

  CostReport Run(const std::function<void(int64_t)>& progress);

 private:
  using Event = std::pair<absl::Duration, int>;  // A group's step ends; or its beat, ~group.

  int PromptTokens() const { return options_.prefix_tokens + options_.tail_tokens; }
  int Steps() const { return static_cast<int>(std::ceil(options_.answer_tokens / options_.tokens_per_forward)); }
  int64_t Positions() const { return PromptTokens() + options_.answer_tokens; }
  double Capacity(double prefill_tokens) const;
  void Arrive();
  void Join(int g);
  void Beat(int g);
  void BeginStep(int g);
  void Admit(Group& group);
  void EndStep(int g);
  bool FindPrefix(Group& group, int prefix);
  void Execute(const Actions& actions);
  void Carry(const SubmitSequence& submit);
  void Carry(const CancelSequence& cancel);
  void Carry(const FailRequest& failed);
  void Carry(const CompleteRequest& complete);
  void Carry(const DropGroup&) {}
  template <typename Call>
  void Dispatch(const Call& call) {
    const absl::Duration start = MonotonicNow();
    const Actions actions = call();
    dispatching_ += MonotonicNow() - start;
    Execute(actions);
  }

  const CostOptions options_;
  Random random_;
  Dispatcher dispatcher_;
  std::vector<Group> groups_;
  std::vector<double> zipf_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  absl::Duration now_ = absl::Seconds(1);
  std::vector<Request> requests_;
  int64_t hit_tokens_ = 0, prompt_tokens_ = 0;
  std::vector<absl::Duration> latencies_, queue_times_;
  std::vector<absl::Duration> ends_;
  absl::Duration dispatching_;  // Wall clock.
  CostReport report_;
};

// All places full, each prompt prefilled beside the denoising of the others.
double CostModel::Capacity(double prefill_tokens) const {
  const double places = options_.sequences_max;
  // A step prefills for those that came in it, and for at least one step of theirs.
  const double steps = Steps() + std::max(1.0, prefill_tokens / options_.prefill_rows_max);
  const double rows = places * (Steps() * options_.block + prefill_tokens) / steps;
  const absl::Duration step = options_.step.Of(static_cast<int64_t>(rows), static_cast<int64_t>(places) * Positions());
  return options_.groups * places / (steps * absl::ToDoubleSeconds(step));
}

void CostModel::Join(int g) {
  const Connection connection{GroupId{static_cast<uint32_t>(g)}, 1};
  Execute(dispatcher_.OnGroupJoined(connection,
                                    {.epoch = 1,
                                     .model = "m",
                                     .fingerprint = "f",
                                     .sequences_max = static_cast<uint32_t>(options_.sequences_max),
                                     .positions_max = static_cast<uint64_t>(options_.positions_max)},
                                    now_));
  Beat(g);
}

void CostModel::Beat(int g) {
  const Group& group = groups_[static_cast<size_t>(g)];
  const GroupBeat beat{
      .epoch = 1,
      .ready = true,
      .sequences_running = static_cast<uint32_t>(group.running.size()),
      .sequences_waiting = static_cast<uint32_t>(group.waiting.size()),
      .positions_free = static_cast<uint64_t>(std::max<int64_t>(0, options_.positions_max - group.positions)),
      .step_time = group.step_time};
  const Connection connection{GroupId{static_cast<uint32_t>(g)}, 1};
  Dispatch([&] { return dispatcher_.OnHeartbeat(connection, beat, now_); });
}

void CostModel::Arrive() {
  const size_t index = requests_.size();
  Request request{.steps_left = Steps(), .sent = now_};
  const double draw = UnitOf(random_.Next()) * zipf_.back();
  request.prefix = static_cast<int>(std::lower_bound(zipf_.begin(), zipf_.end(), draw) - zipf_.begin());
  requests_.push_back(request);
  Admission admission{.id = RequestId{index},
                      .model = "m",
                      .tenant = absl::StrCat("tenant-", index % 10),
                      .prompt_tokens = static_cast<uint32_t>(PromptTokens()),
                      .max_tokens = static_cast<uint32_t>(options_.answer_tokens),
                      .accepted = now_};
  if (options_.affinity) {
    const size_t runs = static_cast<size_t>(options_.prefix_tokens) / kPrefixRunTokens;
    for (size_t i = 0; i < runs; ++i) admission.prefix.push_back(Mix(static_cast<uint64_t>(request.prefix), i));
  }
  const absl::Duration before = dispatching_;
  Dispatch([&] { return dispatcher_.Submit(admission, now_); });
  report_.submit_micros += absl::ToDoubleMicroseconds(dispatching_ - before);
}

bool CostModel::FindPrefix(Group& group, int prefix) {
  const auto found = group.cached.find(prefix);
  const bool hit = found != group.cached.end();
  if (hit) group.recent.erase(found->second);
  group.recent.push_front(prefix);
  group.cached[prefix] = group.recent.begin();
  const int64_t room = options_.positions_max - options_.sequences_max * Positions();
  while (static_cast<int64_t>(group.recent.size()) * options_.prefix_tokens > std::max<int64_t>(room, 0)) {
    group.cached.erase(group.recent.back());
    group.recent.pop_back();
  }
  return hit;
}

void CostModel::Admit(Group& group) {
  while (!group.waiting.empty() && group.running.size() < static_cast<size_t>(options_.sequences_max)) {
    Running next = group.waiting.front();
    group.waiting.pop_front();
    Request& request = requests_[next.request];
    const bool hit = FindPrefix(group, request.prefix);
    next.prefill_left = PromptTokens() - (hit ? options_.prefix_tokens : 0);
    prompt_tokens_ += PromptTokens();
    hit_tokens_ += hit ? options_.prefix_tokens : 0;
    if (request.started == absl::InfiniteDuration()) {
      request.started = now_;
      queue_times_.push_back(now_ - request.sent);
    }
    group.positions += Positions();
    group.running.push_back(next);
  }
}

void CostModel::BeginStep(int g) {
  Group& group = groups_[static_cast<size_t>(g)];
  if (group.stepping) return;
  Admit(group);
  if (group.running.empty()) return;
  int64_t rows = 0;
  int left = options_.prefill_rows_max;
  for (const Running& running : group.running) {
    const int prefill = std::min(left, running.prefill_left);
    left -= prefill;
    rows += running.prefill_left == 0 ? options_.block : prefill;
  }
  group.step_time = options_.step.Of(rows, group.positions);
  group.stepping = true;
  events_.push({now_ + group.step_time, g});
}

void CostModel::EndStep(int g) {
  Group& group = groups_[static_cast<size_t>(g)];
  const Connection connection{GroupId{static_cast<uint32_t>(g)}, 1};
  group.stepping = false;
  dispatcher_.OnResults(connection, 1, now_);
  int left = options_.prefill_rows_max;
  const int steps_of_block = std::max(1, static_cast<int>(options_.block / options_.tokens_per_forward));
  std::vector<std::pair<SequenceId, int>> reports;  // And the steps that are left.
  for (Running& running : group.running) {
    if (running.prefill_left > 0) {
      const int prefill = std::min(left, running.prefill_left);
      left -= prefill;
      running.prefill_left -= prefill;
      continue;
    }
    const int steps_left = --requests_[running.request].steps_left;
    if (steps_left % steps_of_block == 0) reports.emplace_back(running.sequence, steps_left);
  }
  std::erase_if(group.running, [&](const Running& running) {
    if (requests_[running.request].steps_left > 0) return false;
    group.positions -= Positions();
    return true;
  });
  for (const auto& [sequence, steps_left] : reports) {
    const uint32_t tokens = static_cast<uint32_t>((Steps() - steps_left) * options_.tokens_per_forward);
    Dispatch([&, id = sequence, ended = steps_left == 0] {
      return ended ? dispatcher_.OnSequenceEnded(id, tokens, now_) : dispatcher_.OnProgress(id, tokens, now_);
    });
  }
  BeginStep(g);
}

void CostModel::Execute(const Actions& actions) {
  for (const Action& action : actions) {
    std::visit([this](const auto& one) { Carry(one); }, action);
  }
}

void CostModel::Carry(const SubmitSequence& submit) {
  report_.moved += submit.cause == SubmitCause::kMoved;
  const int g = static_cast<int>(submit.to.group);
  groups_[static_cast<size_t>(g)].waiting.push_back({submit.sequence, static_cast<size_t>(submit.request), 0});
  BeginStep(g);
}

void CostModel::Carry(const CancelSequence& cancel) {
  Group& group = groups_[static_cast<uint32_t>(cancel.to.group)];
  const auto is = [&](const Running& running) { return running.sequence == cancel.sequence; };
  if (std::erase_if(group.running, is) > 0) group.positions -= Positions();
  std::erase_if(group.waiting, is);
}

void CostModel::Carry(const FailRequest& failed) {
  ++(requests_[static_cast<size_t>(failed.request)].sent == now_ ? report_.refused_at_once : report_.refused_late);
}

void CostModel::Carry(const CompleteRequest& complete) {
  latencies_.push_back(now_ - requests_[static_cast<size_t>(complete.request)].sent);
  ends_.push_back(now_);
}

CostReport CostModel::Run(const std::function<void(int64_t)>& progress) {
  requests_.reserve(static_cast<size_t>(options_.requests));
  for (int g = 0; g < options_.groups; ++g) {
    Join(g);
    events_.push({now_ + kBeat * UnitOf(random_.Next()), ~g});
  }
  dispatching_ = absl::ZeroDuration();
  const double rate = report_.offered = Capacity(PromptTokens()) * options_.load;
  const absl::Duration first = now_;
  absl::Duration arrival = now_, last_arrival;
  int64_t to_come = options_.requests;
  while (to_come > 0 || dispatcher_.requests() > 0) {
    const absl::Duration next = to_come > 0 ? std::min(arrival, events_.top().first) : events_.top().first;
    if (dispatcher_.NextTick() <= next) {
      now_ = std::max(now_, dispatcher_.NextTick());
      Dispatch([&] { return dispatcher_.Tick(now_); });
      continue;
    }
    now_ = next;
    if (to_come > 0 && arrival == next) {
      Arrive();
      last_arrival = now_;
      arrival += absl::Seconds(-std::log(1.0 - UnitOf(random_.Next())) / rate);
      if (--to_come % std::max<int64_t>(1, options_.requests / 10) == 0) progress(options_.requests - to_come);
      continue;
    }
    const int event = events_.top().second;
    events_.pop();
    if (event >= 0) {
      EndStep(event);
    } else {
      Beat(~event);
      events_.push({now_ + kBeat, event});
    }
  }
  const absl::Duration warm = first + Percentile(latencies_, 0.5);
  const int64_t counted =
      std::count_if(ends_.begin(), ends_.end(), [&](absl::Duration end) { return end > warm && end <= last_arrival; });
  report_.completed = static_cast<int64_t>(ends_.size());
  report_.goodput = static_cast<double>(counted) / std::max(1e-9, absl::ToDoubleSeconds(last_arrival - warm));
  report_.hit_share = static_cast<double>(hit_tokens_) / std::max<double>(1.0, static_cast<double>(prompt_tokens_));
  report_.capacity = Capacity(PromptTokens() * (1 - report_.hit_share));
  report_.latency_p50 = Percentile(latencies_, 0.5);
  report_.latency_p99 = Percentile(latencies_, 0.99);
  report_.queue_p50 = Percentile(queue_times_, 0.5);
  report_.queue_p99 = Percentile(queue_times_, 0.99);
  report_.simulated = now_ - first;
  report_.drained = now_ - last_arrival;
  report_.submit_micros /= static_cast<double>(options_.requests);
  report_.dispatch_micros = absl::ToDoubleMicroseconds(dispatching_) / static_cast<double>(options_.requests);
  report_.idle = dispatcher_.requests() + dispatcher_.sequences() == 0 && dispatcher_.queue_tokens() == 0;
  return report_;
}

}  // namespace

absl::Duration StepCost::Of(int64_t rows, int64_t positions) const {
  const double bytes = weight_bytes + position_bytes * static_cast<double>(positions);
  const double flops = row_flops * static_cast<double>(rows);
  return absl::Seconds(std::max(bytes / bandwidth, flops / peak) / gpus + collectives_seconds);
}

std::string CostReport::ToString() const {
  const auto ms = [](absl::Duration time) { return absl::StrFormat("%.1f ms", absl::ToDoubleMilliseconds(time)); };
  return absl::StrCat(
      absl::StrFormat("requests/s: capacity %.0f, offered %.0f (%.2f of it), goodput %.0f (%.2f of it)\n", capacity,
                      offered, offered / capacity, goodput, goodput / capacity),
      completed, " completed, ", refused_at_once, " refused at once, ", refused_late, " after a wait, ", moved,
      " moved\nlatency p50 ", ms(latency_p50), ", p99 ", ms(latency_p99), "; until the first row p50 ", ms(queue_p50),
      ", p99 ", ms(queue_p99), absl::StrFormat("\n%.1f %% of prompt tokens from prefix caches\n", 100 * hit_share),
      absl::StrFormat("wall clock: %.2f us a Submit(), %.2f us for all dispatching of a request\n", submit_micros,
                      dispatch_micros),
      "simulated ", absl::FormatDuration(simulated), ", drained in ", absl::FormatDuration(drained));
}

CostReport RunCostModel(const CostOptions& options, const std::function<void(int64_t)>& progress) {
  return CostModel(options).Run(progress);
}

}  // namespace quicksilver::simulation
