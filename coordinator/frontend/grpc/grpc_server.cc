#include "coordinator/frontend/grpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "coordinator/frontend/grpc/generate_call.h"
#include "quicksilver/v1/inference.grpc.pb.h"

namespace quicksilver {
namespace {

class InferenceRpc : public v1::Inference::CallbackService {
 public:
  InferenceRpc(Inference& inference, Metrics& metrics, const GrpcServerOptions& options)
      : inference_(inference), metrics_(metrics), options_(options) {}

  grpc::ServerWriteReactor<v1::GenerateEvent>* Generate(grpc::CallbackServerContext* context,
                                                        const v1::GenerateRequest* request) override {
    auto call = std::make_shared<GenerateCall>(*context, inference_, metrics_,
                                               [this](const std::shared_ptr<GenerateCall>& over) { Remove(over); });
    {
      MutexLock lock(mu_);
      calls_.insert(call);
    }
    call->Begin(*request, options_.limits, options_.tenant_header);
    return call.get();
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest*,
                                       v1::ListModelsReply* reply) override {
    for (const ModelInfo& info : inference_.Models()) *reply->add_models() = ToProto(info);
    metrics_.CountRequest("ListModels", 200, "");
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  void CutStalled(absl::Duration since) {
    for (const auto& call : Calls()) call->CutIfStalled(since);
  }

 private:
  std::vector<std::shared_ptr<GenerateCall>> Calls() {
    MutexLock lock(mu_);
    return {calls_.begin(), calls_.end()};
  }

  void Remove(const std::shared_ptr<GenerateCall>& call) {
    MutexLock lock(mu_);
    calls_.erase(call);
  }

  Inference& inference_;
  Metrics& metrics_;
  const GrpcServerOptions& options_;
  Mutex mu_;
  std::set<std::shared_ptr<GenerateCall>> calls_ GUARDED_BY(mu_);
};

void SetArguments(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(16 << 20);
  builder.SetMaxSendMessageSize(16 << 20);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // A second server on the port is an error, not a partner.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1000);
  // What a connection holds for clients that do not read, beside one message a stream.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_WRITE_BUFFER_SIZE, 64 << 10);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 15 * 60 * 1000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, 30 * 60 * 1000);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 10 * 60 * 1000);
  grpc::ResourceQuota quota("inference");
  quota.Resize(512 << 20);
  builder.SetResourceQuota(quota);
}

class GrpcServerImpl : public GrpcServer {
 public:
  GrpcServerImpl(const GrpcServerOptions& options, Inference& inference, Metrics& metrics)
      : options_(options), inference_(inference), rpc_(inference, metrics, options_) {}

  ~GrpcServerImpl() override {
    Stop(absl::ZeroDuration());
    {
      MutexLock lock(mu_);
      stopping_ = true;
      wake_.NotifyAll();
    }
    if (watcher_.joinable()) watcher_.join();
  }

  absl::Status Listen() {
    grpc::EnableDefaultHealthCheckService(true);
    if (options_.reflection) {
      static std::once_flag once;
      std::call_once(once, [] { grpc::reflection::InitProtoReflectionServerBuilderPlugin(); });
    }
    grpc::ServerBuilder builder;
    SetArguments(builder);
    builder.RegisterService(&rpc_);
    builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", options_.listen, ": the address is in use or not one of this host"));
    }
    server_->GetHealthCheckService()->SetServingStatus("liveness", true);
    UpdateHealth();
    watcher_ = std::thread([this] { Watch(); });
    return absl::OkStatus();
  }

  int port() const override { return port_; }

  void UpdateHealth() override {
    const bool ready = !inference_.NotReady().has_value();
    grpc::HealthCheckServiceInterface& health = *server_->GetHealthCheckService();
    MutexLock lock(mu_);
    if (stopped_ || last_ready_ == ready) return;
    last_ready_ = ready;
    health.SetServingStatus("", ready);
    health.SetServingStatus("readiness", ready);
  }

  void Stop(absl::Duration timeout) override {
    if (server_ == nullptr) return;
    {
      MutexLock lock(mu_);
      if (std::exchange(stopped_, true)) return;
      server_->GetHealthCheckService()->SetServingStatus(false);
    }
    server_->Shutdown(absl::ToChronoTime(absl::Now() + timeout));
    server_->Wait();
  }

 private:
  void Watch() {
    for (;;) {
      {
        MutexLock lock(mu_);
        if (!stopping_) wake_.WaitFor(mu_, options_.health_interval);
        if (stopping_) return;
      }
      UpdateHealth();
      rpc_.CutStalled(MonotonicNow() - options_.write_stall_timeout);
    }
  }

  const GrpcServerOptions options_;
  Inference& inference_;
  InferenceRpc rpc_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  Mutex mu_;
  CondVar wake_;
  std::optional<bool> last_ready_ GUARDED_BY(mu_);
  bool stopped_ GUARDED_BY(mu_) = false;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::thread watcher_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcServerOptions& options, Inference& inference,
                                                              Metrics& metrics) {
  auto server = std::make_unique<GrpcServerImpl>(options, inference, metrics);
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  return server;
}

}  // namespace quicksilver
