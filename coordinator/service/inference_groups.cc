#include <algorithm>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "coordinator/service/inference_service_impl.h"

namespace quicksilver {

absl::Status InferenceServiceImpl::CheckGroup(const v1::GroupInfo& info) const {
  const auto refuse = [](auto... parts) { return absl::FailedPreconditionError(absl::StrCat(parts...)); };
  if (info.model().empty()) return refuse("group names no model");
  if (!options_.served_model_name.empty() && info.model() != options_.served_model_name) {
    return refuse("group serves model `", info.model(), "`, this coordinator `", options_.served_model_name, "`");
  }
  if (info.tokenizer_digest() != text_->digest()) {
    return refuse("tokenizer.json differs: the group has sha256 ", info.tokenizer_digest(), ", this coordinator ",
                  text_->digest());
  }
  if (static_cast<uint32_t>(text_->size()) > info.vocabulary()) {
    return refuse("the tokenizer has ids up to ", text_->size() - 1, ", the group's vocabulary ends at ",
                  info.vocabulary());
  }
  if (info.max_model_len() < 2) return refuse("max_model_len is ", info.max_model_len());
  return absl::OkStatus();
}

absl::Status InferenceServiceImpl::OnGroupInfo(Connection connection, const v1::GroupInfo& info) {
  if (const absl::Status status = CheckGroup(info); !status.ok()) return status;
  const uint64_t pages = info.pages_total() * info.page_size();
  GroupFacts facts{.epoch = info.epoch(),
                   .model = info.model(),
                   .fingerprint = info.fingerprint(),
                   .sequences_max = info.sequences_max(),
                   .positions_max = pages > 0 ? pages : uint64_t{info.sequences_max()} * info.max_model_len()};
  Effects effects;
  {
    MutexLock lock(mu_);
    ModelFacts& model = models_[info.model()];
    if (model.created == 0) model.created = static_cast<int64_t>(std::time(nullptr));
    model.name = info.model();
    model.max_model_len = info.max_model_len();
    model.vocabulary = info.vocabulary();
    model.mask_id = info.mask_id();
    model.block_length = info.block_length();
    model.stop_ids.assign(info.stop_ids().begin(), info.stop_ids().end());
    pages_[connection.group] = info.pages_total();
    const absl::Duration now = MonotonicNow();
    Execute(dispatcher_.OnGroupJoined(connection, std::move(facts), now), now, effects);
  }
  const Metrics::Group& metrics = metrics_.groups[static_cast<uint32_t>(connection.group)];
  metrics.epoch->Set(static_cast<double>(info.epoch()));
  metrics.size->Set(info.tensor_parallel_size());
  metrics.size_desired->Set(info.tensor_parallel_size());
  RunEffects(effects);
  return absl::OkStatus();
}

void InferenceServiceImpl::OnHeartbeat(Connection connection, const v1::Heartbeat& heartbeat) {
  Effects effects;
  uint64_t pages = 0;
  bool up = false;
  {
    MutexLock lock(mu_);
    const absl::Duration now = MonotonicNow();
    const GroupBeat beat{.epoch = heartbeat.epoch(), .ready = heartbeat.ready(), .draining = heartbeat.draining()};
    Execute(dispatcher_.OnHeartbeat(connection, beat, now), now, effects);
    pages = pages_[connection.group];
    const auto group = dispatcher_.groups().find(connection.group);
    up = group != dispatcher_.groups().end() && group->second.ready;
  }
  const Metrics::Group& metrics = metrics_.groups[static_cast<uint32_t>(connection.group)];
  metrics.up->Set(up ? 1 : 0);
  if (pages > 0) {
    const double free = static_cast<double>(std::min(heartbeat.pages_free(), pages));
    metrics.kv_cache_usage_ratio->Set(1.0 - free / static_cast<double>(pages));
  }
  RunEffects(effects);
}

void InferenceServiceImpl::OnStepResult(Connection connection, const v1::StepResult& result) {
  struct Target {
    LivePtr live;
    uint32_t choice;
    const v1::SequenceUpdate* update;
    LiveRequest::Applied applied;
  };
  std::vector<Target> targets;
  const absl::Duration now = MonotonicNow();
  {
    MutexLock lock(mu_);
    if (!dispatcher_.OnResults(connection, result.epoch(), now)) return;
    for (const v1::SequenceUpdate& update : result.updates()) {
      const auto owner = dispatcher_.Owner(connection, SequenceId{update.sequence_id()});
      if (!owner) continue;
      const auto it = live_.find(owner->request);
      if (it != live_.end()) targets.push_back({it->second, owner->choice, &update, {}});
    }
  }
  bool changed = false;
  for (Target& target : targets) {
    target.applied = target.live->Apply(target.choice, *target.update, result.epoch(), now);
    changed = changed || target.applied.outcome != LiveRequest::Outcome::kGoesOn;
    if (!target.applied.finished) continue;
    ObserveFinished(*target.applied.finished, target.update->has_end() ? &target.update->end() : nullptr);
  }
  Effects effects;
  if (changed) {
    MutexLock lock(mu_);
    for (Target& target : targets) {
      const SequenceId sequence{target.update->sequence_id()};
      switch (target.applied.outcome) {
        case LiveRequest::Outcome::kGoesOn:
          break;
        case LiveRequest::Outcome::kEndedByWorker:
          Execute(dispatcher_.OnSequenceEnded(sequence, 0, now), now, effects);
          break;
        case LiveRequest::Outcome::kStoppedHere:
          Execute(dispatcher_.EndSequence(sequence, 0, now), now, effects);
          break;
        case LiveRequest::Outcome::kFailed:
          LogWarning("request failed", {{"request_id", target.live->request().request_id},
                                        {"code", target.applied.error.code},
                                        {"step", target.update->step()}});
          if (target.applied.error.code == "numerical_error") metrics_.numerical_errors.Increment();
          Execute(dispatcher_.Fail(target.live->id(), target.applied.error, now), now, effects);
          break;
      }
    }
  }
  RunEffects(effects);
  for (const Target& target : targets) target.live->Deliver();
}

void InferenceServiceImpl::ObserveFinished(const FinishedEvent& finished, const v1::SequenceEnd* end) {
  metrics_.generation_tokens.Increment(finished.completion_tokens);
  metrics_.request_generation_tokens.Observe(finished.completion_tokens);
  metrics_.tokens_per_forward.Observe(finished.tokens_per_forward());
  metrics_.request_decode_time_seconds.Observe(finished.decode_seconds);
  if (end != nullptr) metrics_.request_prefill_time_seconds.Observe(end->prefill_seconds());
  if (finished.time_to_first_token_seconds > 0) {
    metrics_.time_to_first_token_seconds.Observe(finished.time_to_first_token_seconds);
  }
}

void InferenceServiceImpl::OnGroupLost(Connection connection, const std::string&) {
  Effects effects;
  {
    MutexLock lock(mu_);
    const absl::Duration now = MonotonicNow();
    Execute(dispatcher_.OnGroupLost(connection, now), now, effects);
  }
  metrics_.groups[static_cast<uint32_t>(connection.group)].up->Set(0);
  metrics_.groups[static_cast<uint32_t>(connection.group)].size->Set(0);
  RunEffects(effects);
}

}  // namespace quicksilver
