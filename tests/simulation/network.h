#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <variant>

#include "absl/time/time.h"
#include "quicksilver/v1/worker.pb.h"
#include "tests/simulation/random.h"
#include "tests/simulation/world.h"

namespace quicksilver::simulation {

enum class Side { kCoordinator, kGroup };

using Message = std::variant<v1::CoordinatorMessage, v1::WorkerMessage>;

/// One end of streams. What arrives at a process that is gone never gets here: its streams are closed.
class Endpoint {
 public:
  virtual ~Endpoint() = default;
  /// A stream was opened towards a group. False: nobody listens, the dialler sees it closed.
  virtual bool OnDialled(uint64_t stream) = 0;
  virtual void OnMessage(uint64_t stream, const Message& message) = 0;
  /// The other side, or the network, closed it.
  virtual void OnClosed(uint64_t stream) = 0;
};

/// Streams between coordinators and groups: bytes keep their order in a stream and direction, streams do not wait for
/// each other. A blocked direction holds what is sent (as TCP does) until it is open again.
class Network {
 public:
  Network(World& world, uint64_t seed) : world_(world), seed_(seed) {}

  /// `coordinator`, `group`: numbers of the places, for faults. Returns the stream's number, unique in the run, above
  /// 0.
  uint64_t Dial(int coordinator, int group, Endpoint& from, Endpoint& to);
  /// Nothing happens when the sender's end is closed.
  void Send(uint64_t stream, Side from, Message message);
  /// The closing side hears nothing more. The other one hears of it after what was sent before, unless `silently` (the
  /// machine lost its power): then only when it next sends something.
  void Close(uint64_t stream, Side from, bool silently = false);

  // Faults of the link between two places.
  void Block(int coordinator, int group, Side towards);
  void Unblock(int coordinator, int group, Side towards);
  void SetDelay(int coordinator, int group, absl::Duration more);
  /// Breaks the stream there is: what is under way is lost, both ends hear of it. With `half_open` the group's end does
  /// not, until it sends.
  void Break(int coordinator, int group, bool half_open);

  bool open(uint64_t stream, Side at) const;

 private:
  struct Direction {
    absl::Duration last_arrival;
    bool open = true;  ///< At the receiver.
    bool cut = false;  ///< What is under way is lost.
    std::deque<std::function<void()>> under_way;
    int late = 0;  ///< Of these, at the front: how many would have arrived, were it not blocked.
  };
  struct Link {
    bool blocked[2] = {};
    absl::Duration delay;
    uint64_t stream = 0;  ///< The latest.
  };
  struct Stream {
    std::pair<int, int> link;
    Endpoint* ends[2];
    Direction towards[2];
    bool accepted = false;
    uint64_t draws = 0;
  };

  static int Index(Side side) { return side == Side::kCoordinator ? 0 : 1; }
  static Side Other(Side side) { return side == Side::kCoordinator ? Side::kGroup : Side::kCoordinator; }
  /// Runs `arrive` at the other end in the order of this direction.
  void Carry(uint64_t number, Side to, std::function<void()> arrive);
  void Arrive(uint64_t number, Side to);
  void Closed(uint64_t number, Side at);
  absl::Duration DrawDelay(uint64_t number, Stream& stream);

  World& world_;
  const uint64_t seed_;
  uint64_t last_ = 0;
  std::map<uint64_t, Stream> streams_;
  std::map<std::pair<int, int>, Link> links_;
};

}  // namespace quicksilver::simulation
