#include "common/check.h"
#include "coordinator/core/dispatcher.h"

namespace quicksilver {

void Dispatcher::CheckInvariants() const {
  placement_.CheckInvariants();
  CHECK(dirty_.empty());
  Queued queued;
  std::vector<Queued> by_model(queues_.size());
  std::map<GroupId, uint64_t> positions;
  std::map<GroupId, uint32_t> suspects;
  uint64_t waiting = 0, running = 0;
  TokenCounts reserved;
  for (const auto& [id, request] : requests_) {
    uint32_t ended = 0;
    for (uint32_t i = 0; i < request.choices.size(); ++i) {
      const Choice& choice = request.choices[i];
      CHECK((choice.state == Choice::State::kQueued) == !request.started);
      ended += choice.state == Choice::State::kEnded ? 1 : 0;
      if (choice.state == Choice::State::kWaiting) {
        CHECK(LaneOf(request, i).contains({request.admission.priority, request.order, id, i}));
        ++waiting;
      }
      if (choice.state != Choice::State::kRunning) continue;
      ++running;
      const Sequence& sequence = sequences_.at(choice.sequence);
      CHECK(sequence.owner.request == id && sequence.owner.choice == i);
      const GroupState* group = placement_.Find(sequence.on);
      CHECK(group != nullptr && group->live.contains(choice.sequence) && group->pools[1] == request.pool);
      positions[sequence.on.group] += sequence.positions;
      suspects[sequence.on.group] += sequence.suspect ? 1 : 0;
    }
    CHECK(ended == request.ended && ended < request.admission.choices);
    CHECK(request.deadline < absl::InfiniteDuration());
    CHECK(timers_.contains({request.timer, {TimerKind::kRequest, static_cast<uint64_t>(id)}}));
    reserved.input += request.reserved.input;
    reserved.output += request.reserved.output;
    if (request.started) continue;
    for (Queued* each : {&queued, &by_model[request.model->number]}) {
      ++each->requests;
      each->tokens += request.admission.positions() * request.admission.choices;
    }
  }
  CHECK(running == sequences_.size());
  CHECK(queued.requests == queued_.requests && queued.tokens == queued_.tokens);
  for (size_t i = 0; i < queues_.size(); ++i) {
    const Queued& each = queues_[i].queued;
    CHECK(each.requests == by_model[i].requests && each.tokens == by_model[i].tokens);
    CHECK(each.requests == queues_[i].fresh.size() && each.requests <= options_.queue_requests_max);
    CHECK(each.tokens <= options_.queue_tokens_max);
  }
  for (const auto& [id, group] : placement_.groups()) {
    CHECK(group.positions == positions[id] && group.suspects == suspects[id]);
  }
  uint64_t in_lanes = 0;
  for (const GroupPool& pool : placement_.pools()) {
    in_lanes += pool.waiting.size() + pool.suspects.size();
    CHECK(pool.waiting.empty() || pool.open.size() == 0);
    CHECK(pool.suspects.empty() || pool.clean.size() == 0);
  }
  CHECK(in_lanes == waiting);
  const TenantUsage total = tenants_.Total();
  CHECK(total.requests == requests_.size() && total.queued == queued.requests);
  CHECK(total.reserved.input == reserved.input && total.reserved.output == reserved.output);
}

}  // namespace quicksilver
