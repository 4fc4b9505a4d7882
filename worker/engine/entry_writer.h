#pragma once

#include <cstdint>

#include "absl/time/time.h"
#include "quicksilver/v1/group.pb.h"
#include "worker/engine/engine.h"
#include "worker/engine/mailbox.h"
#include "worker/engine/report_builder.h"
#include "worker/engine/scheduler.h"
#include "worker/engine/step_time.h"

namespace quicksilver {

/// What an admitted sequence asks for besides its answer. Its deadline is the first of Submit.deadline_micros and
/// target_micros, both counted from the receipt on the leader.
SchedulingTerms TermsOf(const v1::Admission& admission);

/// When the sequence is to be done, by the group's clock; infinite without Submit.target_micros.
absl::Duration TargetOf(const v1::Admission& admission);

/// Writes the log of a group on its leader: what came in, and all that ranks could not agree on by themselves, such as
/// the time and what a step costs.
class EntryWriter {
 public:
  /// The references outlive it.
  EntryWriter(const EngineOptions& options, int32_t block_length, Mailbox& mailbox, ReportBuilder& reports);

  /// The next entry. `idle`: there is nothing to do but what comes in. `step`: recent mean time of a step.
  v1::LogEntry Write(uint64_t index, bool idle, absl::Duration step);

  /// A step of that many rows took `time`.
  void Observe(int32_t denoise_rows, int32_t prefill_rows, absl::Duration time);
  /// What a step of so many rows should take; zero: unknown.
  absl::Duration Expected(int32_t rows) const { return step_times_.Expected(rows); }

 private:
  int32_t PrefillRows() const;

  const EngineOptions& options_;
  Mailbox& mailbox_;
  ReportBuilder& reports_;
  StepTimeModel step_times_;
  int32_t denoise_rows_ = 0;  // Of the last step.
  uint64_t last_engine_id_ = 0;
};

}  // namespace quicksilver
