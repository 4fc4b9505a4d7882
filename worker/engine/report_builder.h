#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/time/time.h"
#include "quicksilver/v1/worker.pb.h"
#include "worker/engine/mailbox.h"
#include "worker/engine/scheduler.h"

namespace quicksilver {

/// Turns what steps change into the messages of worker.proto, on the leader. `now` is the leader's clock.
class ReportBuilder {
 public:
  explicit ReportBuilder(uint64_t epoch) : epoch_(epoch) {}

  void Admit(uint64_t engine_id, const Submission& submission);
  /// 0 when there is no such live sequence.
  uint64_t Find(const SequenceKey& key) const;
  /// Drops what was to be reported to `stream` and reports nothing more to it; returns its live sequences.
  std::vector<uint64_t> Mute(uint64_t stream);

  void OnPlanned(uint64_t engine_id, bool denoise, absl::Duration now);
  /// What a step, or the end of its time, did to a sequence; `running` is after it.
  void OnDenoised(const RunningSequence& running, const StepOutcome& outcome, absl::Duration now);
  void OnCancelled(const RunningSequence& running, absl::Duration now);

  /// How many sequences of each stream have not got their first rows yet.
  const std::map<uint64_t, int32_t>& unstarted() const { return unstarted_; }

  /// What changed since the last call, by stream.
  std::map<uint64_t, v1::StepResult> TakeResults();
  /// The sequences that ended since the last call.
  std::vector<SequenceKey> TakeEnded();

 private:
  struct Record {
    SequenceKey key;
    bool provisional = false;
    bool muted = false;
    int32_t prompt_tokens = 0;
    int32_t paced_steps = 0;
    std::vector<TokenCommit> held;  // Commits of the open block, for clients that want final tokens alone.
    absl::Duration submitted;
    absl::Duration started = absl::InfiniteDuration();   // First rows of any kind.
    absl::Duration denoised = absl::InfiniteDuration();  // First denoising segment.
  };

  void FillUpdate(Record& record, const Sequence& sequence, const StepOutcome& outcome, v1::SequenceUpdate& update);
  void FillEnd(const Record& record, const RunningSequence& running, SequenceEndReason reason, absl::Duration now,
               v1::SequenceEnd& end) const;
  void Start(Record& record, absl::Duration now);
  void Forget(uint64_t engine_id);

  const uint64_t epoch_;
  std::map<uint64_t, Record> records_;
  std::map<SequenceKey, uint64_t> ids_;
  std::map<uint64_t, int32_t> unstarted_;  // By stream; no zeros.
  std::map<uint64_t, v1::StepResult> results_;
  std::vector<SequenceKey> ended_;
};

}  // namespace quicksilver
