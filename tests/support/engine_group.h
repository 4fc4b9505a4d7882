#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "kernels/ops.h"
#include "tests/support/threaded_communicator.h"
#include "tests/support/threaded_control.h"
#include "worker/engine/engine.h"

namespace quicksilver {

/// Everything that was reported about one sequence.
struct Transcript {
  std::vector<v1::SequenceUpdate> updates;
  bool ended = false;
  v1::SequenceEnd end;
  std::vector<TokenId> answer;  ///< The final tokens behind the prompt.
};

/// A whole group in one process: real engines on real models, one thread a rank. Host devices only.
class EngineGroup {
 public:
  using MakeOps = std::function<std::unique_ptr<Ops>()>;
  struct Options {
    std::string directory;  ///< Of the checkpoint.
    int ranks = 1;
    int32_t block_length = 0;  ///< 0: the checkpoint's.
    TokenId mask_id = -1;      ///< -1: the checkpoint's.
    bool expert_parallel = false;
    int32_t pages = 256;
    int32_t page_size = 16;
    EngineOptions engine;
    MakeOps make_ops;
    /// May change what one rank's engine is told, to make ranks differ.
    std::function<void(int rank, EngineOptions& engine)> vary;
    /// Called on the leader's thread with each result before it is noted; the group stands still meanwhile.
    std::function<void(const v1::StepResult& result)> on_report;
  };

  static absl::StatusOr<std::unique_ptr<EngineGroup>> Start(const Options& options);
  ~EngineGroup();

  const ModelSpec& spec() const { return members_[0].model->spec(); }
  Engine& leader() { return *members_[0].engine; }

  /// Submits as sequence `submit.sequence_id()` of `stream`, one of `streams`.
  absl::Status Submit(const v1::Submit& submit, uint64_t stream = 1, int32_t streams = 1) {
    return leader().Submit(stream, submit, streams);
  }
  /// Waits, a minute at most, until the sequence has ended; DeadlineExceeded otherwise.
  absl::StatusOr<Transcript> Await(uint64_t sequence_id, uint64_t stream = 1);
  /// What was reported so far.
  Transcript Look(uint64_t sequence_id, uint64_t stream = 1);
  /// Submits all at once and waits for all. Transcripts in the order of `submits`.
  absl::StatusOr<std::vector<Transcript>> RunAll(const std::vector<v1::Submit>& submits);

  /// Ends the engines and returns what Run() of each rank returned.
  std::vector<absl::Status> Stop();
  /// The same, for engines that end by themselves.
  std::vector<absl::Status> Join();
  /// How many ranks' Run() returned an error so far.
  int failures();
  /// Fails every wait of the group, as if a rank had died.
  void Break();

 private:
  struct Member {
    std::unique_ptr<Ops> ops;
    std::unique_ptr<Communicator> communicator;
    std::unique_ptr<ControlChannel> control;
    std::unique_ptr<Transformer> model;
    std::unique_ptr<Engine> engine;
    absl::Status status;
  };

  explicit EngineGroup(const Options& options)
      : group_(options.ranks),
        control_(options.ranks),
        members_(static_cast<size_t>(options.ranks)),
        on_report_(options.on_report) {}
  void Note(uint64_t stream, const v1::StepResult& result);
  void NoteFailure();

  ThreadedGroup group_;
  ThreadedControlGroup control_;
  std::vector<Member> members_;
  const std::function<void(const v1::StepResult& result)> on_report_;
  std::vector<std::thread> threads_;

  Mutex mutex_;
  CondVar changed_;
  std::map<std::pair<uint64_t, uint64_t>, Transcript> transcripts_ GUARDED_BY(mutex_);
  int failures_ GUARDED_BY(mutex_) = 0;
};

/// A greedy submission with nothing but the model's defaults. Reports every commit as it happens.
v1::Submit MakeSubmit(uint64_t sequence_id, const std::vector<TokenId>& prompt, uint32_t max_tokens,
                      const std::vector<TokenId>& stop_ids = {});

/// Sixteen sequences that differ in everything a client may choose. `bidirectional`: some are guided.
std::vector<v1::Submit> VariedSubmits(bool bidirectional);

/// Everything a client could see, bits included, in the order it happened.
std::string Bytes(const Transcript& transcript);

}  // namespace quicksilver
