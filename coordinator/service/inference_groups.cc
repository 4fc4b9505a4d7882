#include <algorithm>
#include <cmath>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "coordinator/service/decoding_proto.h"
#include "coordinator/service/inference_service_impl.h"

namespace quicksilver {

void InferenceServiceImpl::OnGroupAdded(GroupId group, const std::string& address) {
  auto place = std::make_shared<GroupPlace>();
  place->address = address;
  place->metrics = metrics_.AddGroup(address);
  MutexLock lock(mu_);
  groups_[group] = std::move(place);
}

void InferenceServiceImpl::OnGroupRemoved(GroupId group) {
  GroupPtr place;  // Its series end outside the lock.
  Effects effects;
  {
    MutexLock lock(mu_);
    const absl::Duration now = MonotonicNow();
    Execute(dispatcher_.OnGroupRemoved(group, now), now, effects);
    place = FindGroup(group);
    groups_.erase(group);
  }
  RunEffects(effects);
}

GroupPtr InferenceServiceImpl::FindGroup(GroupId group) const {
  const auto it = groups_.find(group);
  return it == groups_.end() ? nullptr : it->second;
}

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
  const uint64_t positions = info.pages_total() * info.page_size();
  GroupFacts facts{.epoch = info.epoch(),
                   .model = info.model(),
                   .fingerprint = info.fingerprint(),
                   .sequences_max = info.sequences_max(),
                   .positions_max = positions > 0 ? positions : uint64_t{info.sequences_max()} * info.max_model_len()};
  Effects effects;
  {
    MutexLock lock(mu_);
    const GroupPtr place = FindGroup(connection.group);
    if (place == nullptr) return absl::CancelledError("the group's address is no longer known");
    place->fingerprint = info.fingerprint();
    place->pages = info.pages_total();
    place->page_size = info.page_size();
    place->metrics->epoch.Set(static_cast<double>(info.epoch()));
    place->metrics->size.Set(info.tensor_parallel_size());
    place->metrics->size_desired.Set(info.tensor_parallel_size());
    ModelFacts& model = models_[info.model()];
    if (model.created == 0) model.created = static_cast<int64_t>(std::time(nullptr));
    model.name = info.model();
    model.max_model_len = info.max_model_len();
    model.vocabulary = info.vocabulary();
    model.mask_id = info.mask_id();
    model.block_length = info.block_length();
    model.stop_ids.assign(info.stop_ids().begin(), info.stop_ids().end());
    model.family = info.family();
    model.policies = PolicyNames(info.policies());
    model.infill = info.infill();
    model.grid = info.grid();
    const absl::Duration now = MonotonicNow();
    Execute(dispatcher_.OnGroupJoined(connection, std::move(facts), now), now, effects);
  }
  RunEffects(effects);
  return absl::OkStatus();
}

void InferenceServiceImpl::OnHeartbeat(Connection connection, const v1::Heartbeat& heartbeat) {
  // Means are taken of it: one NaN would stay in them.
  const double step_seconds =
      std::isfinite(heartbeat.step_seconds()) ? std::clamp(heartbeat.step_seconds(), 0.0, 3600.0) : 0;
  Effects effects;
  {
    MutexLock lock(mu_);
    const GroupPtr place = FindGroup(connection.group);
    if (place == nullptr) return;
    GroupBeat beat{.epoch = heartbeat.epoch(),
                   .ready = heartbeat.ready(),
                   .draining = heartbeat.draining(),
                   .sequences_running = heartbeat.sequences_running(),
                   .sequences_waiting = heartbeat.sequences_waiting(),
                   .step_time = absl::Seconds(step_seconds)};
    if (place->pages > 0) {
      const uint64_t free = std::min(heartbeat.pages_free(), place->pages);
      beat.positions_free = free * place->page_size;
      place->kv_usage = 1.0 - static_cast<double>(free) / static_cast<double>(place->pages);
      place->metrics->kv_cache_usage_ratio.Set(place->kv_usage);
    }
    const absl::Duration now = MonotonicNow();
    Execute(dispatcher_.OnHeartbeat(connection, beat, now), now, effects);
    const auto group = dispatcher_.groups().find(connection.group);
    place->metrics->up.Set(group != dispatcher_.groups().end() && group->second.ready ? 1 : 0);
  }
  RunEffects(effects);
}

void InferenceServiceImpl::OnStepResult(Connection connection, const v1::StepResult& result) {
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
  for (Target& target : targets) {
    target.applied = target.live->Apply(target.choice, *target.update, result.epoch(), now);
    Observe(target);
  }
  Effects effects;
  {
    MutexLock lock(mu_);
    for (const Target& target : targets) Settle(target, now, effects);
  }
  RunEffects(effects);
  for (const Target& target : targets) target.live->Deliver();
}

void InferenceServiceImpl::Settle(const Target& target, absl::Duration now, Effects& effects) {
  const SequenceId sequence{target.update->sequence_id()};
  const LiveRequest::Applied& applied = target.applied;
  const bool ended =
      applied.outcome == LiveRequest::Outcome::kEndedByWorker || applied.outcome == LiveRequest::Outcome::kStoppedHere;
  throughput_.AddOutput(applied.new_tokens, applied.new_forwards);
  if (applied.finished) throughput_.AddEnd(target.live->prompt_tokens(), applied.finished->cached_tokens);
  if ((ended || applied.outcome == LiveRequest::Outcome::kGoesOn) && !dispatcher_.IsAlive(sequence)) {
    const SequenceOwner owner{target.live->id(), target.choice};
    return Execute(dispatcher_.OnLateUpdate(owner, ended, applied.output_tokens, now), now, effects);
  }
  switch (applied.outcome) {
    case LiveRequest::Outcome::kNothing:
      return;
    case LiveRequest::Outcome::kGoesOn:
      return Execute(dispatcher_.OnProgress(sequence, applied.output_tokens, now), now, effects);
    case LiveRequest::Outcome::kEndedByWorker:
      return Execute(dispatcher_.OnSequenceEnded(sequence, applied.output_tokens, now), now, effects);
    case LiveRequest::Outcome::kStoppedHere:
      return Execute(dispatcher_.EndSequence(sequence, applied.output_tokens, now), now, effects);
    case LiveRequest::Outcome::kReturned:
      return Execute(dispatcher_.OnSequenceReturned(sequence, now), now, effects);
    case LiveRequest::Outcome::kFailed:
      return Execute(dispatcher_.Fail(target.live->id(), applied.error, now), now, effects);
  }
}

void InferenceServiceImpl::Observe(const Target& target) {
  const LiveRequest::Applied& applied = target.applied;
  if (applied.outcome == LiveRequest::Outcome::kFailed) {
    LogWarning("request failed", {{"request_id", target.live->request().request_id},
                                  {"code", applied.error.code},
                                  {"step", target.update->step()}});
    if (applied.error.code == "numerical_error") metrics_.numerical_errors.Increment();
    if (applied.diverged) metrics_.resume_divergences.Increment();
  }
  if (applied.first_block) metrics_.time_to_first_block_seconds.Observe(absl::ToDoubleSeconds(*applied.first_block));
  if (applied.resumed) metrics_.resume_duration_seconds.Observe(absl::ToDoubleSeconds(*applied.resumed));
  if (!applied.finished) return;
  const FinishedEvent& finished = *applied.finished;
  const Metrics::Tenant& tenant = metrics_.tenant(target.live->request().tenant);
  tenant.generation_tokens->Increment(finished.completion_tokens);
  tenant.cached_prompt_tokens->Increment(finished.cached_tokens);
  metrics_.request_generation_tokens.Observe(finished.completion_tokens);
  metrics_.tokens_per_forward.Observe(finished.tokens_per_forward());
  metrics_.request_decode_time_seconds.Observe(finished.decode_seconds);
  if (target.update->has_end()) {
    metrics_.request_prefill_time_seconds.Observe(target.update->end().prefill_seconds());
  }
  if (finished.time_to_first_token_seconds > 0) {
    metrics_.time_to_first_token_seconds.Observe(finished.time_to_first_token_seconds);
  }
}

void InferenceServiceImpl::OnGroupLost(Connection connection, const std::string&) {
  Effects effects;
  {
    MutexLock lock(mu_);
    const absl::Duration now = MonotonicNow();
    if (const GroupPtr place = FindGroup(connection.group)) {
      place->GiveUp(now);
    }
    Execute(dispatcher_.OnGroupLost(connection, now), now, effects);
  }
  RunEffects(effects);
}

}  // namespace quicksilver
