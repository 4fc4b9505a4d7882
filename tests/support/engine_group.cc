#include "tests/support/engine_group.h"

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/philox.h"
#include "common/status_macros.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/collectives/local_communicator.h"
#include "worker/model/load_spec.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kAwaitMax = absl::Minutes(1);

std::vector<TokenId> Answer(const Transcript& transcript) {
  std::map<uint32_t, TokenId> tokens;
  uint32_t final_before = 0;
  for (const v1::SequenceUpdate& update : transcript.updates) {
    for (const v1::Commit& commit : update.commits()) tokens[commit.position()] = commit.token();
    final_before = update.final_before();
  }
  std::vector<TokenId> answer;
  for (const auto& [position, token] : tokens) {
    if (position < final_before) answer.push_back(token);
  }
  return answer;
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineGroup>> EngineGroup::Start(const Options& options) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(options.directory));
  ASSIGN_OR_RETURN(const ModelSpec spec, LoadModelSpec(*checkpoint, {.block_length = options.block_length,
                                                                     .mask_id = options.mask_id,
                                                                     .expert_parallel = options.expert_parallel}));
  std::unique_ptr<EngineGroup> group(new EngineGroup(options));
  for (int rank = 0; rank < options.ranks; ++rank) {
    Member& member = group->members_[static_cast<size_t>(rank)];
    member.ops = options.make_ops();
    member.communicator = options.ranks == 1 ? MakeLocalCommunicator() : group->group_.Join(rank);
    member.control = group->control_.Join(rank);
    ASSIGN_OR_RETURN(member.model, Transformer::Load(spec, *checkpoint, *member.ops, *member.communicator,
                                                     options.engine.step_rows_max, options.pages, options.page_size));
    EngineOptions engine = options.engine;
    if (options.vary) options.vary(rank, engine);
    member.engine = Engine::Create(
        *member.model, *member.ops, *member.communicator, *member.control, engine,
        /*epoch=*/1, [raw = group.get()](uint64_t stream, const v1::StepResult& result) { raw->Note(stream, result); });
  }
  for (Member& member : group->members_) {
    group->threads_.emplace_back([raw = group.get(), &member] {
      member.status = member.engine->Prepare();
      if (member.status.ok()) member.status = member.engine->Run();
      if (member.status.ok()) return;
      raw->NoteFailure();
      raw->Break();
    });
  }
  return group;
}

EngineGroup::~EngineGroup() {
  // A group that failed to load has no engines.
  if (!threads_.empty()) Stop();
}

std::vector<absl::Status> EngineGroup::Stop() {
  leader().Shutdown();
  return Join();
}

int EngineGroup::failures() {
  MutexLock lock(mutex_);
  return failures_;
}

void EngineGroup::NoteFailure() {
  MutexLock lock(mutex_);
  ++failures_;
}

std::vector<absl::Status> EngineGroup::Join() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  std::vector<absl::Status> statuses;
  for (const Member& member : members_) statuses.push_back(member.status);
  return statuses;
}

void EngineGroup::Break() {
  control_.Close();
  for (Member& member : members_) member.communicator->Abort();
}

void EngineGroup::Note(uint64_t stream, const v1::StepResult& result) {
  if (on_report_) on_report_(result);
  MutexLock lock(mutex_);
  for (const v1::SequenceUpdate& update : result.updates()) {
    Transcript& transcript = transcripts_[{stream, update.sequence_id()}];
    transcript.updates.push_back(update);
    if (!update.has_end()) continue;
    transcript.ended = true;
    transcript.end = update.end();
    transcript.answer = Answer(transcript);
  }
  changed_.NotifyAll();
}

Transcript EngineGroup::Look(uint64_t sequence_id, uint64_t stream) {
  MutexLock lock(mutex_);
  return transcripts_[{stream, sequence_id}];
}

absl::StatusOr<Transcript> EngineGroup::Await(uint64_t sequence_id, uint64_t stream) {
  MutexLock lock(mutex_);
  const absl::Duration until = MonotonicNow() + kAwaitMax;
  Transcript& transcript = transcripts_[{stream, sequence_id}];
  while (!transcript.ended) {
    if (MonotonicNow() >= until) {
      return absl::DeadlineExceededError(absl::StrCat("sequence ", sequence_id, " has not ended"));
    }
    changed_.WaitFor(mutex_, until - MonotonicNow());
  }
  return transcript;
}

absl::StatusOr<std::vector<Transcript>> EngineGroup::RunAll(const std::vector<v1::Submit>& submits) {
  for (const v1::Submit& submit : submits) RETURN_IF_ERROR(Submit(submit));
  std::vector<Transcript> transcripts;
  for (const v1::Submit& submit : submits) {
    ASSIGN_OR_RETURN(Transcript transcript, Await(submit.sequence_id()));
    transcripts.push_back(std::move(transcript));
  }
  return transcripts;
}

v1::Submit MakeSubmit(uint64_t sequence_id, const std::vector<TokenId>& prompt, uint32_t max_tokens,
                      const std::vector<TokenId>& stop_ids) {
  v1::Submit submit;
  submit.set_sequence_id(sequence_id);
  submit.mutable_prompt_ids()->Add(prompt.begin(), prompt.end());
  submit.set_max_tokens(max_tokens);
  submit.mutable_stop_ids()->Add(stop_ids.begin(), stop_ids.end());
  submit.mutable_sampling()->set_top_p(1.0f);
  submit.set_provisional(true);
  return submit;
}

std::vector<v1::Submit> VariedSubmits(bool bidirectional) {
  std::vector<v1::Submit> submits;
  for (uint32_t i = 0; i < 16; ++i) {
    const PhiloxWords roll = Philox(20, i, 0, 0, 0);
    std::vector<TokenId> prompt;
    for (uint32_t p = 0; p < 1 + roll.w[0] % 40; ++p)
      prompt.push_back(static_cast<TokenId>(Philox(21, i, p, 0, 0).w[0] % 249));
    v1::Submit submit = MakeSubmit(i + 1, prompt, 1 + roll.w[1] % 24, {249});
    v1::ResolvedSampling& sampling = *submit.mutable_sampling();
    sampling.set_temperature(i % 2 == 0 ? 0.0f : 0.9f);
    sampling.set_seed(roll.w[2]);
    if (i % 4 == 1) sampling.set_top_k(20);
    if (i % 4 == 3) sampling.set_top_p(0.8f);
    submit.mutable_decoding()->set_policy(static_cast<v1::Policy>(i % 5));
    const v1::Policy policy = submit.decoding().policy();
    if (policy == v1::POLICY_DYNAMIC || policy == v1::POLICY_THRESHOLD) submit.mutable_decoding()->set_threshold(0.6f);
    if (bidirectional && i % 3 == 0) submit.mutable_decoding()->set_guidance_scale(0.5f);
    submits.push_back(submit);
  }
  return submits;
}

std::string Bytes(const Transcript& transcript) {
  std::string bytes;
  for (v1::SequenceUpdate update : transcript.updates) {
    update.set_sequence_id(0);
    update.mutable_end()->clear_queue_seconds();
    update.mutable_end()->clear_prefill_seconds();
    update.mutable_end()->clear_decode_seconds();
    update.mutable_end()->clear_cached_tokens();
    update.mutable_end()->clear_preemptions();
    bytes += update.SerializeAsString();
  }
  return bytes;
}

}  // namespace quicksilver
