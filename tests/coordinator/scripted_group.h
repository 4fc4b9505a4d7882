#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "common/mutex.h"
#include "coordinator/text/text.h"
#include "quicksilver/v1/worker.grpc.pb.h"

namespace quicksilver {

/// A worker group's leader as the coordinator sees it, over a real socket, that says what a test tells it to.
class ScriptedGroup : private v1::Worker::Service {
 public:
  /// Listens on `port` (0: any free one) and beats every 100 ms.
  explicit ScriptedGroup(v1::GroupInfo info, int port = 0);
  ~ScriptedGroup() override;

  int port() const { return port_; }
  std::string address() const;
  /// The next one that came in, or nothing after ten seconds.
  std::optional<v1::Submit> NextSubmit();
  std::optional<uint64_t> NextCancel();
  /// Streams that began since the group was made. And whether one is there now.
  int streams();
  bool connected();
  /// Whether no Submit and no Cancel waits to be taken.
  bool NothingCame();
  /// Sends one update on the current stream, under the group's epoch unless another is given.
  void Send(v1::SequenceUpdate update, uint64_t epoch = 0);
  void SetReady(bool ready);
  void SetDraining(bool draining);
  /// Beats no more, like a group that was stopped.
  void SetSilent(bool silent);
  void BreakStream();
  /// Called for each Submit in place of keeping it.
  void OnSubmit(std::function<void(const v1::Submit&)> handler);

 private:
  using Stream = grpc::ServerReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>;
  grpc::Status Serve(grpc::ServerContext* context, Stream* stream) override;
  void BeatLoop();
  void Beat() REQUIRES_LOCK(mu_);
  template <typename T>
  std::optional<T> Next(std::deque<T> ScriptedGroup::*member);

  const v1::GroupInfo info_;
  int port_ = 0;
  Mutex mu_;
  CondVar changed_;
  Stream* stream_ GUARDED_BY(mu_) = nullptr;
  grpc::ServerContext* context_ GUARDED_BY(mu_) = nullptr;
  std::deque<v1::Submit> submits_ GUARDED_BY(mu_);
  std::deque<uint64_t> cancels_ GUARDED_BY(mu_);
  std::function<void(const v1::Submit&)> on_submit_ GUARDED_BY(mu_);
  int streams_ GUARDED_BY(mu_) = 0;
  bool ready_ GUARDED_BY(mu_) = true;
  bool draining_ GUARDED_BY(mu_) = false;
  bool silent_ GUARDED_BY(mu_) = false;
  bool stopping_ GUARDED_BY(mu_) = false;
  std::unique_ptr<grpc::Server> server_;
  std::thread beats_;
};

/// A group of the demo model that agrees with `text`.
v1::GroupInfo DemoGroup(const TextModel& text, uint32_t sequences_max = 4);

/// An update that commits `ids` from `position` on and makes everything up to their end final.
v1::SequenceUpdate FinalTokens(const v1::Submit& submit, const std::vector<int32_t>& ids, uint32_t position,
                               uint32_t step);
/// `update` is the last one of an answer of `tokens` in all.
v1::SequenceUpdate Ending(v1::SequenceUpdate update, size_t tokens,
                          v1::SequenceEnd::Reason reason = v1::SequenceEnd::REASON_STOP);
/// FinalTokens() of the whole answer, and it is over.
v1::SequenceUpdate WholeAnswer(const v1::Submit& submit, const std::vector<int32_t>& ids,
                               v1::SequenceEnd::Reason reason = v1::SequenceEnd::REASON_STOP);

}  // namespace quicksilver
