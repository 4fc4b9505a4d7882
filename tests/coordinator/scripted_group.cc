#include "tests/coordinator/scripted_group.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"

namespace quicksilver {

ScriptedGroup::ScriptedGroup(v1::GroupInfo info, int port) : info_(std::move(info)) {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port), grpc::InsecureServerCredentials(), &port_);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  CHECK(server_ != nullptr && port_ != 0);
  beats_ = std::thread([this] { BeatLoop(); });
}

ScriptedGroup::~ScriptedGroup() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    changed_.NotifyAll();
    if (context_ != nullptr) context_->TryCancel();
  }
  beats_.join();
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_->Wait();
}

std::string ScriptedGroup::address() const { return absl::StrCat("127.0.0.1:", port_); }

grpc::Status ScriptedGroup::Serve(grpc::ServerContext* context, Stream* stream) {
  v1::CoordinatorMessage message;
  if (!stream->Read(&message) || !message.has_hello()) {
    return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "no hello");
  }
  {
    MutexLock lock(mu_);
    stream_ = stream;
    context_ = context;
    ++streams_;
    v1::WorkerMessage info;
    *info.mutable_info() = info_;
    stream->Write(info);
    Beat();
  }
  while (stream->Read(&message)) {
    std::function<void(const v1::Submit&)> handler;
    {
      MutexLock lock(mu_);
      handler = on_submit_;
      if (message.has_cancel()) cancels_.push_back(message.cancel().sequence_id());
      if (message.has_submit() && !handler) submits_.push_back(message.submit());
      changed_.NotifyAll();
    }
    if (message.has_submit() && handler) handler(message.submit());
  }
  MutexLock lock(mu_);
  if (stream_ == stream) {
    stream_ = nullptr;
    context_ = nullptr;
  }
  return grpc::Status::OK;
}

void ScriptedGroup::BeatLoop() {
  MutexLock lock(mu_);
  while (!stopping_) {
    Beat();
    changed_.WaitFor(mu_, absl::Milliseconds(100));
  }
}

void ScriptedGroup::Beat() {
  if (stream_ == nullptr || silent_) return;
  v1::WorkerMessage message;
  v1::Heartbeat& heartbeat = *message.mutable_heartbeat();
  heartbeat.set_epoch(info_.epoch());
  heartbeat.set_ready(ready_);
  heartbeat.set_draining(draining_);
  heartbeat.set_pages_free(info_.pages_total() / 4);
  stream_->Write(message);
}

template <typename T>
std::optional<T> ScriptedGroup::Next(std::deque<T> ScriptedGroup::*member) {
  MutexLock lock(mu_);
  std::deque<T>& from = this->*member;
  const absl::Time end = absl::Now() + absl::Seconds(10);
  while (from.empty() && absl::Now() < end) changed_.WaitFor(mu_, absl::Milliseconds(50));
  if (from.empty()) return std::nullopt;
  T next = std::move(from.front());
  from.pop_front();
  return next;
}

std::optional<v1::Submit> ScriptedGroup::NextSubmit() { return Next(&ScriptedGroup::submits_); }
std::optional<uint64_t> ScriptedGroup::NextCancel() { return Next(&ScriptedGroup::cancels_); }

int ScriptedGroup::streams() {
  MutexLock lock(mu_);
  return streams_;
}

bool ScriptedGroup::connected() {
  MutexLock lock(mu_);
  return stream_ != nullptr;
}

bool ScriptedGroup::NothingCame() {
  MutexLock lock(mu_);
  return submits_.empty() && cancels_.empty();
}

void ScriptedGroup::Send(v1::SequenceUpdate update, uint64_t epoch) {
  v1::WorkerMessage message;
  message.mutable_step()->set_epoch(epoch == 0 ? info_.epoch() : epoch);
  *message.mutable_step()->add_updates() = std::move(update);
  MutexLock lock(mu_);
  if (stream_ != nullptr) stream_->Write(message);
}

void ScriptedGroup::SetReady(bool ready) {
  MutexLock lock(mu_);
  ready_ = ready;
  Beat();
}

void ScriptedGroup::SetDraining(bool draining) {
  MutexLock lock(mu_);
  draining_ = draining;
  Beat();
}

void ScriptedGroup::SetSilent(bool silent) {
  MutexLock lock(mu_);
  silent_ = silent;
}

void ScriptedGroup::BreakStream() {
  MutexLock lock(mu_);
  if (context_ != nullptr) context_->TryCancel();
}

void ScriptedGroup::OnSubmit(std::function<void(const v1::Submit&)> handler) {
  MutexLock lock(mu_);
  on_submit_ = std::move(handler);
}

v1::GroupInfo DemoGroup(const TextModel& text, uint32_t sequences_max) {
  v1::GroupInfo info;
  info.set_group("scripted");
  info.set_epoch(3);
  info.set_fingerprint("0123456789abcdef");
  info.set_model("demo");
  info.set_tokenizer_digest(text.digest());
  info.set_tensor_parallel_size(2);
  info.set_vocabulary(static_cast<uint32_t>(text.size()));
  info.set_mask_id(text.FindSpecial("<|MASK|>"));
  info.set_block_length(8);
  info.set_max_model_len(512);
  info.set_sequences_max(sequences_max);
  info.set_pages_total(64);
  info.set_page_size(16);
  info.add_stop_ids(text.FindSpecial("<|im_end|>"));
  info.add_stop_ids(text.FindSpecial("<|endoftext|>"));
  info.set_family("sdar");
  info.set_grid(v1::GRID_ABSOLUTE);
  for (const v1::Policy policy : {v1::POLICY_STATIC, v1::POLICY_DYNAMIC}) info.add_policies(policy);
  return info;
}

v1::SequenceUpdate FinalTokens(const v1::Submit& submit, const std::vector<int32_t>& ids, uint32_t position,
                               uint32_t step) {
  v1::SequenceUpdate update;
  update.set_sequence_id(submit.sequence_id());
  update.set_step(step);
  for (const int32_t id : ids) {
    v1::Commit& commit = *update.add_commits();
    commit.set_position(position++);
    commit.set_token(id);
  }
  update.set_block((position - 1) / 8);
  update.set_final_before(position);
  return update;
}

v1::SequenceUpdate Ending(v1::SequenceUpdate update, size_t tokens, v1::SequenceEnd::Reason reason) {
  v1::SequenceEnd& end = *update.mutable_end();
  end.set_reason(reason);
  end.set_completion_tokens(static_cast<uint32_t>(tokens));
  end.set_forwards(update.step());
  end.set_decode_seconds(0.25);
  return update;
}

v1::SequenceUpdate WholeAnswer(const v1::Submit& submit, const std::vector<int32_t>& ids,
                               v1::SequenceEnd::Reason reason) {
  return Ending(FinalTokens(submit, ids, static_cast<uint32_t>(submit.prompt_ids_size()), 5), ids.size(), reason);
}

}  // namespace quicksilver
