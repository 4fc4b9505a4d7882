#include "worker/engine/report_builder.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "common/check.h"
#include "worker/engine/decoding_wire.h"

namespace quicksilver {
namespace {

void AddCommit(const TokenCommit& commit, TokenId mask_id, v1::SequenceUpdate& update) {
  v1::Commit& out = *update.add_commits();
  out.set_position(static_cast<uint32_t>(commit.position));
  out.set_token(commit.token == mask_id ? -1 : commit.token);
  out.set_confidence(commit.confidence);
  out.set_log_probability(commit.log_probability);
  for (const TopLogit& top : commit.top) {
    v1::TopToken& alternative = *out.add_top();
    alternative.set_id(top.id);
    alternative.set_log_probability(top.logit);
  }
}

double Seconds(absl::Duration from, absl::Duration to) {
  return to > from ? absl::ToDoubleSeconds(to - from) : 0.0;  // Also when `from` never came.
}

}  // namespace

void ReportBuilder::Admit(uint64_t engine_id, const Submission& submission) {
  Record record;
  record.key = {submission.stream, submission.submit.sequence_id()};
  record.provisional = submission.submit.provisional();
  record.prompt_tokens = submission.submit.prompt_ids_size();
  record.submitted = submission.submitted;
  ++unstarted_[submission.stream];
  CHECK(ids_.emplace(record.key, engine_id).second);
  records_.emplace(engine_id, std::move(record));
}

uint64_t ReportBuilder::Find(const SequenceKey& key) const {
  const auto found = ids_.find(key);
  return found == ids_.end() ? 0 : found->second;
}

std::vector<uint64_t> ReportBuilder::Mute(uint64_t stream) {
  std::vector<uint64_t> live;
  for (auto it = ids_.lower_bound({stream, 0}); it != ids_.end() && it->first.first == stream; ++it) {
    records_.at(it->second).muted = true;
    live.push_back(it->second);
  }
  results_.erase(stream);
  return live;
}

void ReportBuilder::OnPlanned(uint64_t engine_id, bool denoise, absl::Duration now) {
  Record& record = records_.at(engine_id);
  Start(record, now);
  if (denoise) record.denoised = std::min(record.denoised, now);
}

// It waits no longer; when it is over before its first rows, it never started.
void ReportBuilder::Start(Record& record, absl::Duration now) {
  if (record.started != absl::InfiniteDuration()) return;
  record.started = now;
  const auto waiting = unstarted_.find(record.key.first);
  if (--waiting->second == 0) unstarted_.erase(waiting);
}

void ReportBuilder::OnDenoised(const RunningSequence& running, const StepOutcome& outcome, absl::Duration now) {
  Record& record = records_.at(running.id);
  record.paced_steps += outcome.paced ? 1 : 0;
  const bool ended = outcome.end != SequenceEndReason::kNone;
  if (!record.provisional) record.held.insert(record.held.end(), outcome.commits.begin(), outcome.commits.end());
  if (!record.muted && (record.provisional || outcome.block_closed || ended)) {
    v1::SequenceUpdate& update = *results_[record.key.first].add_updates();
    FillUpdate(record, running.sequence, outcome, update);
    if (ended) FillEnd(record, running, outcome.end, now, *update.mutable_end());
  }
  if (ended) Forget(running.id);
}

void ReportBuilder::FillUpdate(Record& record, const Sequence& sequence, const StepOutcome& outcome,
                               v1::SequenceUpdate& update) {
  update.set_sequence_id(record.key.second);
  update.set_step(static_cast<uint32_t>(sequence.forwards()));
  update.set_block_step(outcome.block_closed ? 0 : static_cast<uint32_t>(sequence.block_forwards()));
  update.set_block(static_cast<uint32_t>(outcome.block));
  update.set_final_before(static_cast<uint32_t>(sequence.final_before()));
  const TokenId mask_id = sequence.spec().mask_id;
  update.set_block_state(!outcome.block_closed && sequence.stateful());
  update.set_canvas_length(static_cast<uint32_t>(sequence.grown_length()));
  update.set_policy(WireOf(sequence.spec().decoding.policy));
  update.set_cache(WireOf(sequence.spec().decoding.cache));
  if (record.provisional) {
    for (const TokenCommit& commit : outcome.commits) AddCommit(commit, mask_id, update);
    return;
  }
  // The last word on each position counts, and what stands behind the closed blocks waits, unless it was
  // written ahead: with these updates alone somebody else can go on.
  std::stable_sort(record.held.begin(), record.held.end(),
                   [](const TokenCommit& a, const TokenCommit& b) { return a.position < b.position; });
  std::vector<TokenCommit> kept;
  for (size_t i = 0; i < record.held.size(); ++i) {
    const TokenCommit& commit = record.held[i];
    if (i + 1 < record.held.size() && record.held[i + 1].position == commit.position) continue;
    if (commit.position < sequence.final_before() || sequence.writes_ahead()) {
      AddCommit(commit, mask_id, update);
    } else {
      kept.push_back(commit);
    }
  }
  record.held = std::move(kept);
}

void ReportBuilder::FillEnd(const Record& record, const RunningSequence& running, SequenceEndReason reason,
                            absl::Duration now, v1::SequenceEnd& end) const {
  switch (reason) {
    case SequenceEndReason::kStop:
      end.set_reason(v1::SequenceEnd::REASON_STOP);
      break;
    case SequenceEndReason::kLength:
      end.set_reason(v1::SequenceEnd::REASON_LENGTH);
      break;
    case SequenceEndReason::kDeadline:
      end.set_reason(v1::SequenceEnd::REASON_DEADLINE);
      break;
    case SequenceEndReason::kNone:  // No rule ended it.
      end.set_reason(v1::SequenceEnd::REASON_CANCELLED);
      break;
    case SequenceEndReason::kNumericalError:
      end.set_reason(v1::SequenceEnd::REASON_ERROR);
      end.set_error_code("numerical_error");
      end.set_error_message("a logit of the sequence is not finite");
      break;
    case SequenceEndReason::kStuck:
      end.set_reason(v1::SequenceEnd::REASON_ERROR);
      end.set_error_code("internal_error");
      end.set_error_message("a block took more forwards than it has positions");
      break;
  }
  end.set_completion_tokens(static_cast<uint32_t>(running.sequence.final_before() - record.prompt_tokens));
  end.set_forwards(static_cast<uint32_t>(running.sequence.forwards()));
  end.set_cached_tokens(static_cast<uint32_t>(running.cached_tokens));
  end.set_preemptions(static_cast<uint32_t>(running.preemptions));
  end.set_paced_steps(static_cast<uint32_t>(record.paced_steps));
  end.set_queue_seconds(Seconds(record.submitted, std::min(record.started, now)));
  end.set_prefill_seconds(Seconds(record.started, std::min(record.denoised, now)));
  end.set_decode_seconds(Seconds(record.denoised, now));
}

void ReportBuilder::OnCancelled(const RunningSequence& running, absl::Duration now) {
  const Record& record = records_.at(running.id);
  if (!record.muted) {
    v1::SequenceUpdate& update = *results_[record.key.first].add_updates();
    update.set_sequence_id(record.key.second);
    update.set_step(static_cast<uint32_t>(running.sequence.forwards()));
    update.set_block_step(static_cast<uint32_t>(running.sequence.block_forwards()));
    update.set_final_before(static_cast<uint32_t>(running.sequence.final_before()));
    FillEnd(record, running, SequenceEndReason::kNone, now, *update.mutable_end());
  }
  Forget(running.id);
}

void ReportBuilder::Forget(uint64_t engine_id) {
  const auto found = records_.find(engine_id);
  Start(found->second, absl::ZeroDuration());
  ended_.push_back(found->second.key);
  ids_.erase(found->second.key);
  records_.erase(found);
}

std::map<uint64_t, v1::StepResult> ReportBuilder::TakeResults() {
  for (auto& [stream, result] : results_) result.set_epoch(epoch_);
  return std::exchange(results_, {});
}

std::vector<SequenceKey> ReportBuilder::TakeEnded() { return std::exchange(ended_, {}); }

}  // namespace quicksilver
