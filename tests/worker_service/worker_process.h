#pragma once

#include <arpa/inet.h>
#include <dirent.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "quicksilver/v1/worker.grpc.pb.h"
#include "tests/support/child_process.h"

namespace quicksilver {

inline int FreePort() {
  const int probe = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  bind(probe, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  getsockname(probe, reinterpret_cast<sockaddr*>(&address), &length);
  close(probe);
  return ntohs(address.sin_port);
}

/// The program under test on free ports of loopback.
class WorkerProcess {
 public:
  explicit WorkerProcess(const std::vector<std::string>& flags, const std::string& program = QUICKSILVER_WORKER)
      : address_(absl::StrCat("127.0.0.1:", FreePort())),
        pages_port_(FreePort()),
        process_(Arguments(program, address_, pages_port_, flags)) {}

  /// The whole reply to a GET on the metrics port; empty when nothing answers.
  std::string Get(const std::string& path) const {
    const int connection = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(pages_port_));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    std::string reply;
    if (connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
      const std::string request = "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
      if (write(connection, request.data(), request.size()) > 0) {
        char bytes[4096];
        for (ssize_t count; (count = read(connection, bytes, sizeof(bytes))) > 0;) {
          reply.append(bytes, static_cast<size_t>(count));
        }
      }
    }
    close(connection);
    return reply;
  }

  ChildProcess& process() { return process_; }
  const std::string& address() const { return address_; }

  /// Process ids of the ranks, by rank.
  std::vector<pid_t> Ranks() const {
    std::ifstream file(absl::StrCat("/proc/", process_.pid(), "/task/", process_.pid(), "/children"));
    std::vector<pid_t> ranks;
    for (pid_t pid; file >> pid;) ranks.push_back(pid);
    return ranks;  // In the order of their start.
  }

 private:
  static std::vector<std::string> Arguments(const std::string& program, const std::string& address, int pages_port,
                                            const std::vector<std::string>& flags) {
    std::vector<std::string> arguments = {program, "--listen=" + address,
                                          absl::StrCat("--metrics-listen=127.0.0.1:", pages_port)};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return arguments;
  }

  const std::string address_;
  const int pages_port_;
  ChildProcess process_;
};

/// The answer of grpc.health.v1.Health/Check: 1 serving, 2 not; -1: no such service, or nobody answers. The proto is
/// not shipped with gRPC, but its two messages have one field each.
inline int CheckHealth(const std::string& address, const std::string& service) {
  grpc::GenericStub stub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(10)));
  const std::string request = std::string("\x0a") + static_cast<char>(service.size()) + service;
  const grpc::Slice slice(request);
  const grpc::ByteBuffer message(&slice, 1);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", message, &queue);
  grpc::ByteBuffer reply;
  grpc::Status status;
  call->StartCall();
  call->Finish(&reply, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  std::vector<grpc::Slice> slices;
  if (!status.ok() || !reply.Dump(&slices).ok() || slices.empty() || slices[0].size() != 2) return -1;
  return slices[0].begin()[1];
}

/// A coordinator's end of the Serve stream: one thread, every wait bounded by the call's deadline.
class TestCoordinator {
 public:
  explicit TestCoordinator(const std::string& address, absl::Duration bound = absl::Seconds(60))
      : stub_(v1::Worker::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    context_.set_wait_for_ready(true);
    context_.set_deadline(absl::ToChronoTime(absl::Now() + bound));
    stream_ = stub_->Serve(&context_);
  }
  ~TestCoordinator() { Disconnect(); }

  void Hello() {
    v1::CoordinatorMessage message;
    message.mutable_hello()->set_coordinator("test");
    stream_->Write(message);
  }
  void Submit(uint64_t id, uint32_t max_tokens, const std::string& policy = "") {
    v1::CoordinatorMessage message;
    v1::Submit& submit = *message.mutable_submit();
    submit.set_sequence_id(id);
    for (int token = 0; token < 12; ++token) submit.add_prompt_ids(40 + token);
    submit.set_max_tokens(max_tokens);
    submit.mutable_sampling()->set_temperature(policy == "slow" ? 1.0f : 0.0f);
    submit.mutable_sampling()->set_top_p(1.0f);
    submit.mutable_sampling()->set_seed(1);
    submit.set_provisional(true);
    if (policy == "slow") submit.mutable_decoding()->set_policy(v1::POLICY_SEQUENTIAL);
    stream_->Write(message);
  }
  void Cancel(uint64_t id) {
    v1::CoordinatorMessage message;
    message.mutable_cancel()->set_sequence_id(id);
    stream_->Write(message);
  }

  /// The next message; an empty one at the end of the stream.
  v1::WorkerMessage Next() {
    v1::WorkerMessage message;
    if (!stream_->Read(&message)) message.Clear();
    return message;
  }
  /// Reads heartbeats until one satisfies `condition`. False at the end of the stream.
  template <typename Condition>
  bool AwaitBeat(const Condition& condition) {
    while (true) {
      const v1::WorkerMessage message = Next();
      if (message.message_case() == v1::WorkerMessage::MESSAGE_NOT_SET) return false;
      if (message.has_heartbeat() && condition(message.heartbeat())) return true;
    }
  }
  bool AwaitReady() {
    return AwaitBeat([](const v1::Heartbeat& beat) { return beat.ready(); });
  }
  /// Reads until sequence `id` ends; its tokens by position, and how it ended.
  struct Answer {
    std::vector<int32_t> tokens;
    v1::SequenceEnd end;
    bool lost = true;
  };
  Answer AwaitEnd(uint64_t id) {
    Answer answer;
    while (answer.lost) {
      const v1::WorkerMessage message = Next();
      if (message.message_case() == v1::WorkerMessage::MESSAGE_NOT_SET) break;
      for (const v1::SequenceUpdate& update : message.step().updates()) {
        if (update.sequence_id() != id) continue;
        for (const v1::Commit& commit : update.commits()) {
          if (answer.tokens.size() <= commit.position()) answer.tokens.resize(commit.position() + 1, -1);
          answer.tokens[commit.position()] = commit.token();
        }
        if (update.has_end()) {
          answer.end = update.end();
          answer.lost = false;
        }
      }
    }
    return answer;
  }

  void Disconnect() {
    if (stream_ == nullptr) return;
    context_.TryCancel();
    v1::WorkerMessage message;
    while (stream_->Read(&message)) {
    }
    stream_->Finish();
    stream_ = nullptr;
  }
  grpc::Status Finish() {
    const grpc::Status status = stream_->Finish();
    stream_ = nullptr;
    return status;
  }

 private:
  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>> stream_;
};

}  // namespace quicksilver
