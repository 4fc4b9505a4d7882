#include "worker/service/group_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "quicksilver/v1/group.grpc.pb.h"

namespace quicksilver {
namespace {

// gRPC's codes and absl's are the same numbers.
grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

absl::Duration TimeLeft(const grpc::ServerContext& context, absl::Duration most) {
  return std::clamp(absl::FromChrono(context.deadline()) - absl::Now(), absl::ZeroDuration(), most);
}

// The synchronous API: at most a few dozen calls, once in a group's life, that wait for each other.
class GroupRpc final : public v1::Group::Service {
 public:
  GroupRpc(JoinTable& table, RendezvousStore& store, absl::Duration timeout)
      : table_(table), store_(store), timeout_(timeout) {}

  grpc::Status Join(grpc::ServerContext*, const v1::JoinRequest* request, v1::JoinReply*) override {
    const Agreement agreement(request->agreement().begin(), request->agreement().end());
    return ToGrpc(table_.Join(static_cast<int>(request->rank()), request->epoch(), agreement, timeout_));
  }

  grpc::Status Put(grpc::ServerContext*, const v1::PutRequest* request, v1::PutReply*) override {
    return ToGrpc(store_.Put(request->key(), request->value()));
  }

  grpc::Status Get(grpc::ServerContext* context, const v1::GetRequest* request, v1::GetReply* reply) override {
    const auto values = store_.Get({request->keys().begin(), request->keys().end()}, TimeLeft(*context, timeout_));
    if (!values.ok()) return ToGrpc(values.status());
    for (const std::string& value : *values) reply->add_values(value);
    return grpc::Status::OK;
  }

 private:
  JoinTable& table_;
  RendezvousStore& store_;
  const absl::Duration timeout_;
};

class GroupServerImpl final : public GroupServer {
 public:
  GroupServerImpl(JoinTable& table, RendezvousStore& store, absl::Duration timeout) : rpc_(table, store, timeout) {}

  ~GroupServerImpl() override {
    // Answers that are on their way may leave.
    if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::Now() + absl::Seconds(1)));
  }

  absl::Status Listen(const std::string& address) {
    grpc::ServerBuilder builder;
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(&rpc_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::UnavailableError(absl::StrCat("--group-address: ", address, " is in use or may not be bound"));
    }
    return absl::OkStatus();
  }

 private:
  GroupRpc rpc_;
  std::unique_ptr<grpc::Server> server_;
};

class GroupClientImpl final : public GroupClient {
 public:
  explicit GroupClientImpl(const std::string& address) : address_(address) {
    grpc::ChannelArguments arguments;
    // Rank 0 may come later: ask again soon.
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
    stub_ = v1::Group::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  }

  absl::Status Join(int rank, uint64_t epoch, const Agreement& agreement, absl::Duration timeout) override {
    v1::JoinRequest request;
    request.set_rank(static_cast<uint32_t>(rank));
    request.set_epoch(epoch);
    request.mutable_agreement()->insert(agreement.begin(), agreement.end());
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    // Rank 0 may have come later; its answer names the missing ranks and is worth the wait.
    SetDeadline(context, timeout + kAnswerMargin);
    v1::JoinReply reply;
    const grpc::Status status = stub_->Join(&context, request, &reply);
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED && status.error_message() == "Deadline Exceeded") {
      return absl::DeadlineExceededError(
          absl::StrCat("rank 0 has not come to ", address_, " within ", absl::FormatDuration(timeout)));
    }
    return FromGrpc(status);
  }

  absl::Status Put(const std::string& key, const std::string& value) override {
    v1::PutRequest request;
    request.set_key(key);
    request.set_value(value);
    grpc::ClientContext context;
    SetDeadline(context, kAnswerMargin);
    v1::PutReply reply;
    return FromGrpc(stub_->Put(&context, request, &reply));
  }

  absl::StatusOr<std::vector<std::string>> Get(const std::vector<std::string>& keys, absl::Duration timeout) override {
    v1::GetRequest request;
    for (const std::string& key : keys) request.add_keys(key);
    grpc::ClientContext context;
    SetDeadline(context, timeout);
    v1::GetReply reply;
    RETURN_IF_ERROR(FromGrpc(stub_->Get(&context, request, &reply)));
    return std::vector<std::string>(reply.values().begin(), reply.values().end());
  }

 private:
  static constexpr absl::Duration kAnswerMargin = absl::Seconds(2);

  static void SetDeadline(grpc::ClientContext& context, absl::Duration timeout) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  }

  const std::string address_;
  std::unique_ptr<v1::Group::Stub> stub_;
};

}  // namespace

absl::Status JoinTable::Join(int rank, uint64_t epoch, const Agreement& agreement, absl::Duration timeout) {
  const absl::Duration deadline = MonotonicNow() + timeout;
  MutexLock lock(mutex_);
  absl::Status status = Admit(rank, epoch, agreement);
  changed_.NotifyAll();
  while (status.ok() && joined_.size() < static_cast<size_t>(size_)) {
    const absl::Duration left = deadline - MonotonicNow();
    if (left <= absl::ZeroDuration()) {
      status = absl::DeadlineExceededError(
          absl::StrCat(Missing(), " of ", size_, " missing after ", absl::FormatDuration(timeout)));
      break;
    }
    changed_.WaitFor(mutex_, left);
    status = disagreement_;
  }
  ++answered_;
  changed_.NotifyAll();
  return status;
}

absl::Status JoinTable::Admit(int rank, uint64_t epoch, const Agreement& agreement) {
  if (epoch != epoch_) {
    return absl::AbortedError(absl::StrCat("rank ", rank, " is of epoch ", epoch, ", the group forms epoch ", epoch_));
  }
  if (!disagreement_.ok()) return disagreement_;
  if (!joined_.empty() && joined_.begin()->second != agreement) {
    const auto& [other_rank, other] = *joined_.begin();
    Agreement names = agreement;
    names.insert(other.begin(), other.end());
    for (const auto& [name, unused] : names) {
      const auto mine = agreement.find(name), theirs = other.find(name);
      const std::string found = mine == agreement.end() ? "none" : mine->second;
      const std::string expected = theirs == other.end() ? "none" : theirs->second;
      if (found == expected) continue;
      disagreement_ = absl::FailedPreconditionError(absl::StrCat(
          "ranks disagree: ", name, " is '", expected, "' on rank ", other_rank, " and '", found, "' on rank ", rank));
      return disagreement_;
    }
  }
  if (rank < 0 || rank >= size_) {
    return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " is not below the group's size (", size_, ")"));
  }
  if (!joined_.emplace(rank, agreement).second) {
    disagreement_ = absl::FailedPreconditionError(absl::StrCat("rank ", rank, " has joined twice"));
  }
  return disagreement_;
}

std::string JoinTable::Missing() {
  std::vector<int> missing;
  for (int rank = 0; rank < size_; ++rank) {
    if (joined_.find(rank) == joined_.end()) missing.push_back(rank);
  }
  return absl::StrCat(missing.size() == 1 ? "rank " : "ranks ", absl::StrJoin(missing, ", "));
}

void JoinTable::WaitAllAnswered(absl::Duration timeout) {
  const absl::Duration deadline = MonotonicNow() + timeout;
  MutexLock lock(mutex_);
  while (answered_ < size_ && MonotonicNow() < deadline) changed_.WaitFor(mutex_, deadline - MonotonicNow());
}

absl::StatusOr<std::unique_ptr<GroupServer>> GroupServer::Start(const std::string& address, JoinTable& table,
                                                                RendezvousStore& store,
                                                                absl::Duration formation_timeout) {
  auto server = std::make_unique<GroupServerImpl>(table, store, formation_timeout);
  RETURN_IF_ERROR(server->Listen(address));
  return server;
}

std::unique_ptr<GroupClient> GroupClient::Make(const std::string& address) {
  return std::make_unique<GroupClientImpl>(address);
}

}  // namespace quicksilver
