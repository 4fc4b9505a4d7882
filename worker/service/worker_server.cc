#include "worker/service/worker_server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "quicksilver/v1/worker.grpc.pb.h"
#include "worker/service/serve_stream.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kBeat = absl::Seconds(1);
constexpr int kMessageBytesMax = 64 << 20;

void SetArguments(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // A second server on the port is an error, not a partner.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
}

/// Whether the sequences get their steps.
class StallWatch {
 public:
  bool Stalled(const EngineLoad& load, absl::Duration now) {
    if (load.running + load.waiting == 0 || load.steps != steps_) {
      steps_ = load.steps;
      moved_ = now;
    }
    return now - moved_ > kStallLimit;
  }

 private:
  uint64_t steps_ = 0;
  absl::Duration moved_ = absl::ZeroDuration();
};

v1::SequenceUpdate Refusal(uint64_t sequence_id, const std::string& code, const std::string& message) {
  v1::SequenceUpdate update;
  update.set_sequence_id(sequence_id);
  update.mutable_end()->set_reason(v1::SequenceEnd::REASON_ERROR);
  update.mutable_end()->set_error_code(code);
  update.mutable_end()->set_error_message(message);
  return update;
}

const char* CodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return "invalid_value";
    case absl::StatusCode::kResourceExhausted:
      return "server_is_overloaded";
    case absl::StatusCode::kUnavailable:
      return "worker_lost";
    default:
      return "internal_error";
  }
}

class WorkerServerImpl final : public WorkerServer, public v1::Worker::CallbackService, public ServeHandler {
 public:
  explicit WorkerServerImpl(const v1::GroupInfo& info) : info_(info) {}
  ~WorkerServerImpl() override;

  absl::Status Listen(const std::string& listen);
  void AttachEngine(Engine& engine) override;
  void DetachEngine() override;
  void Report(uint64_t stream, v1::StepResult result) override;
  void BeginDrain() override;
  void Stop(absl::Duration grace) override;
  GroupStatus Status() const override;

  grpc::ServerBidiReactor<v1::CoordinatorMessage, v1::WorkerMessage>* Serve(
      grpc::CallbackServerContext* context) override;

 private:
  v1::GroupInfo Info() const override { return info_; }
  v1::Heartbeat Beat() override;
  v1::SequenceUpdate OnSubmit(uint64_t stream, const v1::Submit& submit) override;
  void OnCancel(uint64_t stream, uint64_t sequence_id) override;
  void OnClosed(uint64_t stream) override;

  void BeatLoop();
  void BeatNow();
  std::vector<std::shared_ptr<ServeStream>> Streams() const;

  const v1::GroupInfo info_;
  std::unique_ptr<grpc::Server> server_;
  std::thread beats_;

  mutable Mutex streams_mutex_;
  std::map<uint64_t, std::shared_ptr<ServeStream>> streams_ GUARDED_BY(streams_mutex_);
  uint64_t last_stream_ GUARDED_BY(streams_mutex_) = 0;

  mutable Mutex engine_mutex_;  // Held while the engine takes a message: it only queues it.
  Engine* engine_ GUARDED_BY(engine_mutex_) = nullptr;
  bool draining_ GUARDED_BY(engine_mutex_) = false;
  absl::Duration refuse_from_ GUARDED_BY(engine_mutex_) = absl::InfiniteDuration();
  mutable StallWatch watch_ GUARDED_BY(engine_mutex_);

  Mutex beat_mutex_;
  CondVar beat_wake_;
  bool stopping_ GUARDED_BY(beat_mutex_) = false;
};

WorkerServerImpl::~WorkerServerImpl() {
  {
    MutexLock lock(beat_mutex_);
    stopping_ = true;
    beat_wake_.NotifyAll();
  }
  if (beats_.joinable()) beats_.join();
  Stop(absl::ZeroDuration());
  server_.reset();  // Waits for the streams, which use what follows.
}

absl::Status WorkerServerImpl::Listen(const std::string& listen) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  SetArguments(builder);
  int port = 0;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(static_cast<v1::Worker::CallbackService*>(this));
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("--listen: ", listen, " is in use or may not be bound"));
  }
  BeatNow();
  beats_ = std::thread([this] { BeatLoop(); });
  return absl::OkStatus();
}

grpc::ServerBidiReactor<v1::CoordinatorMessage, v1::WorkerMessage>* WorkerServerImpl::Serve(
    grpc::CallbackServerContext* context) {
  std::shared_ptr<ServeStream> stream;
  {
    MutexLock lock(streams_mutex_);
    stream = std::make_shared<ServeStream>(++last_stream_, *context, *this);
    streams_.emplace(last_stream_, stream);
  }
  LogInfo("coordinator connected", {{"peer", context->peer()}});
  stream->Begin();
  return stream.get();
}

GroupStatus WorkerServerImpl::Status() const {
  GroupStatus status;
  {
    MutexLock lock(streams_mutex_);
    status.streams = streams_.size();
  }
  MutexLock lock(engine_mutex_);
  status.draining = draining_;
  status.load.pages_free = status.load.pages_total = info_.pages_total();
  if (engine_ == nullptr) return status;
  status.load = engine_->Load();
  status.ready = !draining_;
  status.stalled = watch_.Stalled(status.load, MonotonicNow());
  return status;
}

v1::Heartbeat WorkerServerImpl::Beat() {
  const GroupStatus status = Status();
  v1::Heartbeat beat;
  beat.set_epoch(info_.epoch());
  beat.set_ready(status.ready);
  beat.set_draining(status.draining);
  beat.set_sequences_running(status.load.running);
  beat.set_sequences_waiting(status.load.waiting);
  beat.set_pages_free(status.load.pages_free);
  beat.set_pages_cached(status.load.pages_cached);
  beat.set_steps(status.load.steps);
  beat.set_step_seconds(absl::ToDoubleSeconds(status.load.step_clock.mean));
  return beat;
}

void WorkerServerImpl::BeatLoop() {
  while (true) {
    {
      MutexLock lock(beat_mutex_);
      if (!stopping_) beat_wake_.WaitFor(beat_mutex_, kBeat);
      if (stopping_) return;
    }
    BeatNow();
  }
}

void WorkerServerImpl::BeatNow() {
  const GroupStatus status = Status();
  if (auto* health = server_->GetHealthCheckService(); health != nullptr) {
    health->SetServingStatus("", status.ready);
    health->SetServingStatus("readiness", status.ready);
    health->SetServingStatus("liveness", !status.stalled);
  }
  for (const auto& stream : Streams()) stream->PushBeat(Beat());
}

std::vector<std::shared_ptr<ServeStream>> WorkerServerImpl::Streams() const {
  MutexLock lock(streams_mutex_);
  std::vector<std::shared_ptr<ServeStream>> streams;
  for (const auto& [id, stream] : streams_) streams.push_back(stream);
  return streams;
}

v1::SequenceUpdate WorkerServerImpl::OnSubmit(uint64_t stream, const v1::Submit& submit) {
  const uint64_t id = submit.sequence_id();
  const int32_t streams = static_cast<int32_t>(Streams().size());
  MutexLock lock(engine_mutex_);
  if (MonotonicNow() >= refuse_from_) return Refusal(id, "shutting_down", "the group is draining");
  if (engine_ == nullptr) return Refusal(id, "worker_lost", "the group is still forming");
  const absl::Status status = engine_->Submit(stream, submit, streams);
  if (!status.ok()) return Refusal(id, CodeOf(status), std::string(status.message()));
  return {};
}

void WorkerServerImpl::OnCancel(uint64_t stream, uint64_t sequence_id) {
  MutexLock lock(engine_mutex_);
  if (engine_ != nullptr) engine_->Cancel(stream, sequence_id);
}

void WorkerServerImpl::OnClosed(uint64_t stream) {
  {
    MutexLock lock(engine_mutex_);
    if (engine_ != nullptr) engine_->CancelStream(stream);
  }
  LogInfo("coordinator gone", {{"stream", stream}});
  std::shared_ptr<ServeStream> last;  // The stream may go with the end of this function, not within the lock.
  MutexLock lock(streams_mutex_);
  const auto found = streams_.find(stream);
  last = std::move(found->second);
  streams_.erase(found);
}

void WorkerServerImpl::AttachEngine(Engine& engine) {
  {
    MutexLock lock(engine_mutex_);
    engine_ = &engine;
  }
  BeatNow();
}

void WorkerServerImpl::DetachEngine() {
  {
    MutexLock lock(engine_mutex_);
    engine_ = nullptr;
  }
  BeatNow();
}

void WorkerServerImpl::Report(uint64_t stream, v1::StepResult result) {
  std::shared_ptr<ServeStream> target;
  {
    MutexLock lock(streams_mutex_);
    if (const auto found = streams_.find(stream); found != streams_.end()) target = found->second;
  }
  if (target == nullptr) return;
  v1::WorkerMessage message;
  *message.mutable_step() = std::move(result);
  target->Push(std::move(message));
}

void WorkerServerImpl::BeginDrain() {
  {
    MutexLock lock(engine_mutex_);
    draining_ = true;
    refuse_from_ = std::min(refuse_from_, MonotonicNow() + kLameDuck);
  }
  BeatNow();
}

void WorkerServerImpl::Stop(absl::Duration grace) {
  if (server_ == nullptr) return;
  for (const auto& stream : Streams()) stream->Close({grpc::StatusCode::UNAVAILABLE, "the group is shutting down"});
  server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::Start(const std::string& listen,
                                                                  const v1::GroupInfo& info) {
  auto server = std::make_unique<WorkerServerImpl>(info);
  RETURN_IF_ERROR(server->Listen(listen));
  return server;
}

}  // namespace quicksilver
