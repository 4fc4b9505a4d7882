#include "worker/engine/entry_writer.h"

#include <algorithm>
#include <utility>

#include "common/clock.h"

namespace quicksilver {
namespace {

// Prefill that nobody bounds takes at most as long as the denoising beside it, or a moment.
constexpr absl::Duration kStepTimeFloor = absl::Milliseconds(50);

absl::Duration After(uint64_t received_micros, uint64_t micros) {
  if (micros == 0) return absl::InfiniteDuration();
  return absl::Microseconds(received_micros) + absl::Microseconds(micros);
}

uint64_t Micros(absl::Duration time) { return static_cast<uint64_t>(absl::ToInt64Microseconds(time)); }

int32_t ClassOf(v1::Priority priority) {
  switch (priority) {
    case v1::PRIORITY_INTERACTIVE:
      return 0;
    case v1::PRIORITY_BATCH:
      return 2;
    default:
      return 1;
  }
}

}  // namespace

SchedulingTerms TermsOf(const v1::Admission& admission) {
  const v1::Submit& submit = admission.submit();
  SchedulingTerms terms;
  terms.priority = ClassOf(submit.priority());
  terms.tenant = submit.tenant();
  terms.cache_salt = submit.cache_salt();
  terms.deadline = std::min(After(admission.received_micros(), submit.deadline_micros()), TargetOf(admission));
  return terms;
}

absl::Duration TargetOf(const v1::Admission& admission) {
  return After(admission.received_micros(), admission.submit().target_micros());
}

EntryWriter::EntryWriter(const EngineOptions& options, int32_t block_length, Mailbox& mailbox, ReportBuilder& reports)
    : options_(options),
      mailbox_(mailbox),
      reports_(reports),
      step_times_(std::clamp(block_length, 1, options.step_rows_max), options.step_rows_max) {}

v1::LogEntry EntryWriter::Write(uint64_t index, bool idle, absl::Duration step) {
  Inbox inbox = mailbox_.Take(idle, options_.idle_beat);
  v1::LogEntry entry;
  entry.set_index(index);
  entry.set_clock_micros(Micros(MonotonicNow()));
  entry.set_shutdown(inbox.shutdown);
  entry.set_prefill_rows(static_cast<uint32_t>(PrefillRows()));
  entry.set_step_micros(Micros(step));
  for (Submission& submission : inbox.submissions) {
    reports_.Admit(++last_engine_id_, submission);
    v1::Admission& admission = *entry.add_admissions();
    admission.set_engine_id(last_engine_id_);
    admission.set_received_micros(Micros(submission.submitted));
    *admission.mutable_submit() = std::move(submission.submit);
  }
  for (const SequenceKey& key : inbox.cancels) {
    if (inbox.broken_streams.contains(key.first)) continue;
    if (const uint64_t id = reports_.Find(key); id != 0) entry.add_cancels(id);
  }
  for (const uint64_t stream : inbox.broken_streams) {
    for (const uint64_t id : reports_.Mute(stream)) entry.add_cancels(id);
  }
  return entry;
}

void EntryWriter::Observe(int32_t denoise_rows, int32_t prefill_rows, absl::Duration time) {
  denoise_rows_ = denoise_rows;
  step_times_.Observe(denoise_rows, prefill_rows, time);
}

int32_t EntryWriter::PrefillRows() const {
  // Nobody waits beside it.
  if (denoise_rows_ == 0) return options_.step_rows_max;
  absl::Duration target = options_.step_time_target;
  if (target == absl::ZeroDuration()) target = std::max(kStepTimeFloor, 2 * step_times_.Expected(denoise_rows_));
  return step_times_.PrefillRows(target, denoise_rows_);
}

}  // namespace quicksilver
