#include "tests/simulation/network.h"

#include <algorithm>

namespace quicksilver::simulation {

uint64_t Network::Dial(int coordinator, int group, Endpoint& from, Endpoint& to) {
  const uint64_t number = ++last_;
  Stream stream;
  stream.link = {coordinator, group};
  stream.ends[Index(Side::kCoordinator)] = &from;
  stream.ends[Index(Side::kGroup)] = &to;
  streams_.emplace(number, std::move(stream));
  links_[{coordinator, group}].stream = number;
  Carry(number, Side::kGroup, [this, number] {
    Stream& dialled = streams_.at(number);
    dialled.accepted = dialled.ends[Index(Side::kGroup)]->OnDialled(number);
    if (dialled.accepted) return;
    dialled.towards[Index(Side::kGroup)].open = false;
    Carry(number, Side::kCoordinator, [this, number] { Closed(number, Side::kCoordinator); });
  });
  return number;
}

void Network::Send(uint64_t number, Side from, Message message) {
  if (!open(number, from)) return;
  const Side to = Other(from);
  Carry(number, to, [this, number, to, message = std::move(message)] {
    streams_.at(number).ends[Index(to)]->OnMessage(number, message);
  });
}

void Network::Close(uint64_t number, Side from, bool silently) {
  Stream& stream = streams_.at(number);
  if (!std::exchange(stream.towards[Index(from)].open, false)) return;
  const Side to = Other(from);
  if (!silently) Carry(number, to, [this, number, to] { Closed(number, to); });
}

void Network::Closed(uint64_t number, Side at) {
  Stream& stream = streams_.at(number);
  if (!std::exchange(stream.towards[Index(at)].open, false)) return;
  stream.ends[Index(at)]->OnClosed(number);
}

bool Network::open(uint64_t stream, Side at) const { return streams_.at(stream).towards[Index(at)].open; }

absl::Duration Network::DrawDelay(uint64_t number, Stream& stream) {
  const double unit = UnitOf(Mix(seed_, number, stream.draws++));
  const double tail = unit > 0.98 ? 20.0 : 1.0;  // A lost packet now and then.
  return absl::Microseconds(static_cast<int64_t>(tail * (100 + 1900 * unit))) + links_[stream.link].delay;
}

void Network::Carry(uint64_t number, Side to, std::function<void()> arrive) {
  Stream& stream = streams_.at(number);
  Direction& direction = stream.towards[Index(to)];
  direction.under_way.push_back(std::move(arrive));
  direction.last_arrival = std::max(direction.last_arrival, world_.now() + DrawDelay(number, stream));
  world_.At(direction.last_arrival, [this, number, to] { Arrive(number, to); });
}

void Network::Arrive(uint64_t number, Side to) {
  Stream& stream = streams_.at(number);
  Direction& direction = stream.towards[Index(to)];
  if (links_[stream.link].blocked[Index(to)]) {
    ++direction.late;
    return;
  }
  if (direction.under_way.empty()) return;  // Lost with a cut.
  const std::function<void()> arrive = std::move(direction.under_way.front());
  direction.under_way.pop_front();
  if (direction.cut) return;
  if (direction.open) return arrive();
  // Whoever sends to a closed end is told so.
  const Side from = Other(to);
  if (open(number, from)) Carry(number, from, [this, number, from] { Closed(number, from); });
}

void Network::Block(int coordinator, int group, Side towards) {
  links_[{coordinator, group}].blocked[Index(towards)] = true;
}

void Network::Unblock(int coordinator, int group, Side towards) {
  if (!std::exchange(links_[{coordinator, group}].blocked[Index(towards)], false)) return;
  for (auto& [number, stream] : streams_) {
    if (stream.link != std::pair(coordinator, group)) continue;
    const int late = std::exchange(stream.towards[Index(towards)].late, 0);
    for (int i = 0; i < late; ++i)
      world_.After(absl::Milliseconds(1), [this, number = number, towards] { Arrive(number, towards); });
  }
}

void Network::SetDelay(int coordinator, int group, absl::Duration more) { links_[{coordinator, group}].delay = more; }

void Network::Break(int coordinator, int group, bool half_open) {
  const uint64_t number = links_[{coordinator, group}].stream;
  if (number == 0) return;
  Stream& stream = streams_.at(number);
  if (!stream.accepted) return;
  for (Direction& direction : stream.towards) {
    direction.cut = !half_open;
  }
  world_.After(absl::Milliseconds(1), [this, number] { Closed(number, Side::kCoordinator); });
  if (!half_open) world_.After(absl::Milliseconds(2), [this, number] { Closed(number, Side::kGroup); });
}

}  // namespace quicksilver::simulation
