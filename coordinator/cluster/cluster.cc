#include "coordinator/cluster/cluster.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "coordinator/cluster/serve_call.h"

namespace quicksilver {
namespace {

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(64 << 20);
  args.SetMaxSendMessageSize(64 << 20);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 800);
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

enum class Phase { kIdle, kDialling, kLive };

// The place of one group. Guarded by the cluster's lock.
struct Place {
  std::string address;
  std::unique_ptr<v1::Worker::Stub> stub;
  bool told = false;     // The listener knows it.
  bool retired = false;  // Not found any more.
  Phase phase = Phase::kIdle;
  std::shared_ptr<ServeCall> call;  // Null when idle.
  uint64_t connections = 0;
  int open_calls = 0;  // That gRPC has not let go of: they need the channel.
  int failures = 0;    // Streams in a row that came to nothing.
  bool refused = false;
  bool silent = false;  // No answer in time.
  absl::Duration next_dial = absl::ZeroDuration();
  absl::Duration hello_deadline = absl::InfiniteDuration();
  std::string last_reason;  // Logged once, not at every attempt.
};

class ClusterImpl : public Cluster {
 public:
  ClusterImpl(const ClusterOptions& options, GroupListener& listener) : options_(options), listener_(listener) {
    dialler_ = std::thread([this] { DialLoop(); });
    discovery_ = Discovery::Start(options.discovery, [this](const auto& addresses) { SetMembers(addresses); });
  }

  ~ClusterImpl() override { Stop(); }

  void Stop() override {
    if (!dialler_.joinable()) return;
    discovery_.reset();
    std::vector<std::shared_ptr<ServeCall>> calls;
    {
      MutexLock lock(mu_);
      stopping_ = true;
      wake_.NotifyAll();
      for (auto& [group, place] : places_) {
        if (place.call != nullptr) calls.push_back(std::move(place.call));
      }
    }
    dialler_.join();
    for (const auto& call : calls) call->Cancel();
    calls.clear();
    MutexLock lock(mu_);
    while (open_calls_ > 0) all_ended_.Wait(mu_);
  }

  void Enqueue(Connection connection, std::unique_ptr<v1::CoordinatorMessage> message) override {
    if (const std::shared_ptr<ServeCall> call = Find(connection)) call->Enqueue(std::move(message));
  }

  void Flush(Connection connection) override {
    if (const std::shared_ptr<ServeCall> call = Find(connection)) call->Flush();
  }

  void Drop(Connection connection) override {
    std::shared_ptr<ServeCall> call;
    {
      MutexLock lock(mu_);
      Place* place = PlaceOf(connection);
      if (place == nullptr) return;
      call = std::move(place->call);
      Rest(*place);
    }
    call->Cancel();
  }

 private:
  // Null when this is not the group's present stream.
  Place* PlaceOf(Connection connection) REQUIRES_LOCK(mu_) {
    const auto it = places_.find(connection.group);
    if (it == places_.end() || it->second.call == nullptr) return nullptr;
    return it->second.call->connection() == connection ? &it->second : nullptr;
  }

  std::shared_ptr<ServeCall> Find(Connection connection) {
    MutexLock lock(mu_);
    const Place* place = PlaceOf(connection);
    return place == nullptr ? nullptr : place->call;
  }

  void SetMembers(const std::set<std::string>& addresses) {
    MutexLock lock(mu_);
    std::set<std::string> added = addresses;
    for (auto& [group, place] : places_) {
      place.retired = added.erase(place.address) == 0;
      if (place.retired && place.phase == Phase::kDialling) place.call->Cancel();
    }
    for (const std::string& address : added) {
      if (places_.size() >= options_.groups_max) {
        LogWarning("too many worker groups: some are left out", {{"address", address}, {"max", options_.groups_max}});
        break;
      }
      Place& place = places_[GroupId{next_group_++}];
      place.address = address;
      place.stub = v1::Worker::NewStub(Dial(address));
    }
    wake_.NotifyAll();
  }

  void DialLoop() {
    MutexLock lock(mu_);
    while (!stopping_) {
      if (TellOfOne()) continue;
      const absl::Duration now = MonotonicNow();
      absl::Duration next = now + absl::Seconds(60);
      for (auto& [group, place] : places_) {
        if (place.phase == Phase::kIdle && !place.retired && place.next_dial <= now) DialGroup(group, place, now);
        if (place.phase == Phase::kDialling && place.hello_deadline <= now) {
          place.hello_deadline = absl::InfiniteDuration();
          place.silent = true;
          place.call->Cancel();
        }
        if (place.retired && place.phase == Phase::kIdle) continue;
        next = std::min(next, place.phase == Phase::kIdle ? place.next_dial : place.hello_deadline);
      }
      if (next > now) wake_.WaitFor(mu_, next - now);
    }
  }

  // Tells the listener of a group that is new or gone, without the lock. False when it knows all.
  bool TellOfOne() REQUIRES_LOCK(mu_) {
    for (auto it = places_.begin(); it != places_.end(); ++it) {
      const GroupId group = it->first;
      Place& place = it->second;
      const bool gone = place.retired && place.phase == Phase::kIdle && place.open_calls == 0;
      if (!gone && place.told) continue;
      const std::string address = place.address;
      const bool told = std::exchange(place.told, true);
      auto removed = gone ? places_.extract(it) : decltype(places_)::node_type();
      mu_.Unlock();
      if (!gone) {
        listener_.OnGroupAdded(group, address);
      } else if (told) {
        listener_.OnGroupRemoved(group);
      }
      removed = {};  // The end of a channel may take a while.
      mu_.Lock();
      return true;
    }
    return false;
  }

  void DialGroup(GroupId group, Place& place, absl::Duration now) REQUIRES_LOCK(mu_) {
    place.phase = Phase::kDialling;
    place.hello_deadline = now + options_.hello_timeout;
    place.silent = false;
    ++open_calls_;
    ++place.open_calls;
    place.call = ServeCall::Start(
        *place.stub, Connection{group, ++place.connections}, options_.coordinator,
        {.on_message = [this](ServeCall& call, const v1::WorkerMessage& message) { OnMessage(call, message); },
         .on_end = [this](ServeCall& call, const grpc::Status& status) { OnEnd(call, status); },
         .on_gone = [this, group] { OnGone(group); }});
  }

  void OnMessage(ServeCall& call, const v1::WorkerMessage& message) {
    if (Find(call.connection()) == nullptr) return;
    switch (message.message_case()) {
      case v1::WorkerMessage::kInfo:
        return OnInfo(call, message.info());
      case v1::WorkerMessage::kHeartbeat:
        return listener_.OnHeartbeat(call.connection(), message.heartbeat());
      case v1::WorkerMessage::kStep:
        return listener_.OnStepResult(call.connection(), message.step());
      case v1::WorkerMessage::MESSAGE_NOT_SET:
        return;  // From a newer worker.
    }
  }

  void OnInfo(ServeCall& call, const v1::GroupInfo& info) {
    const Connection connection = call.connection();
    const absl::Status verdict = listener_.OnGroupInfo(connection, info);
    MutexLock lock(mu_);
    Place* found = PlaceOf(connection);
    if (found == nullptr) return;
    Place& place = *found;
    place.hello_deadline = absl::InfiniteDuration();
    place.refused = !verdict.ok();
    if (!verdict.ok()) {
      Complain(place, std::string(verdict.message()), "group refused");
      call.Cancel();
      return;
    }
    place.phase = Phase::kLive;
    place.failures = 0;
    place.last_reason.clear();
    LogInfo("group joined", {{"group", info.group()}, {"address", place.address}, {"epoch", info.epoch()}});
  }

  void OnEnd(ServeCall& call, const grpc::Status& status) {
    const Connection connection = call.connection();
    std::string reason = absl::StrCat("stream ended with code ", static_cast<int>(status.error_code()),
                                      status.error_message().empty() ? "" : ": ", status.error_message());
    bool lost = false;
    {
      MutexLock lock(mu_);
      if (Place* place = PlaceOf(connection)) {
        lost = place->phase == Phase::kLive;
        if (place->silent) reason = absl::StrCat("no answer within ", absl::FormatDuration(options_.hello_timeout));
        if (!place->refused) Complain(*place, reason, lost ? "group lost" : "group cannot be reached");
      }
    }
    // The listener hears of the end before the next stream can begin.
    if (lost) listener_.OnGroupLost(connection, reason);
    MutexLock lock(mu_);
    if (Place* place = PlaceOf(connection)) {
      place->call.reset();
      Rest(*place);
    }
  }

  void OnGone(GroupId group) {
    MutexLock lock(mu_);
    if (--places_.at(group).open_calls == 0) wake_.NotifyAll();
    if (--open_calls_ == 0) all_ended_.NotifyAll();
  }

  void Complain(Place& place, const std::string& reason, const char* what) REQUIRES_LOCK(mu_) {
    if (stopping_ || place.retired || place.last_reason == reason) return;
    place.last_reason = reason;
    LogWarning(what, {{"address", place.address}, {"reason", reason}});
  }

  void Rest(Place& place) REQUIRES_LOCK(mu_) {
    const absl::Duration max = place.refused ? options_.refused_backoff_max : options_.backoff_max;
    const absl::Duration pause = std::min(max, options_.backoff_min * (1 << std::min(place.failures, 10)));
    ++place.failures;
    place.phase = Phase::kIdle;
    place.next_dial = MonotonicNow() + pause * std::uniform_real_distribution<>(0.5, 1.0)(random_);
    wake_.NotifyAll();
  }

  const ClusterOptions options_;
  GroupListener& listener_;
  Mutex mu_;
  CondVar wake_;
  CondVar all_ended_;
  std::map<GroupId, Place> places_ GUARDED_BY(mu_);
  uint32_t next_group_ GUARDED_BY(mu_) = 0;
  int open_calls_ GUARDED_BY(mu_) = 0;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::minstd_rand random_ GUARDED_BY(mu_){std::random_device{}()};
  std::thread dialler_;
  std::unique_ptr<Discovery> discovery_;
};

}  // namespace

std::unique_ptr<Cluster> Cluster::Start(const ClusterOptions& options, GroupListener& listener) {
  return std::make_unique<ClusterImpl>(options, listener);
}

}  // namespace quicksilver
