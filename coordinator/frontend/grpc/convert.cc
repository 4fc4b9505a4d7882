#include "coordinator/frontend/grpc/convert.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "coordinator/service/decoding_proto.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace quicksilver {
namespace {

constexpr const char* kDomain = "quicksilver.v1.Inference";

template <typename... Parts>
ApiError Invalid(const std::string& field, const Parts&... parts) {
  return InvalidRequest("invalid_value", field, absl::StrCat(field, parts...));
}

std::vector<int32_t> ToVector(const google::protobuf::RepeatedField<int32_t>& ids) { return {ids.begin(), ids.end()}; }

std::optional<ApiError> ReadInput(const v1::GenerateRequest& proto, const GrpcLimits& limits,
                                  GenerateRequest& request) {
  switch (proto.input_case()) {
    case v1::GenerateRequest::kPrompt:
      request.input = proto.prompt();
      return std::nullopt;
    case v1::GenerateRequest::kPromptIds:
      request.input = ToVector(proto.prompt_ids().ids());
      return std::nullopt;
    case v1::GenerateRequest::INPUT_NOT_SET:
      return InvalidRequest("missing_required_parameter", "input", "One of chat, prompt and prompt_ids is required.");
    case v1::GenerateRequest::kChat:
      break;
  }
  const auto& turns = proto.chat().messages();
  if (turns.empty()) return Invalid("chat.messages", " must not be empty.");
  if (turns.size() > limits.messages_max) {
    return Invalid("chat.messages", " has ", turns.size(), " elements, at most ", limits.messages_max, " are allowed.");
  }
  std::vector<ChatMessage> messages;
  for (int i = 0; i < turns.size(); ++i) {
    const std::string& role = turns[i].role();
    const bool known =
        role == "developer" || role == "system" || role == "user" || role == "assistant" || role == "tool";
    if (!known) {
      return Invalid(absl::StrCat("chat.messages[", i, "].role"),
                     " must be one of developer, system, user, assistant and tool.");
    }
    messages.push_back({role == "developer" ? "system" : role, turns[i].content(), turns[i].name()});
  }
  request.input = std::move(messages);
  return std::nullopt;
}

std::optional<ApiError> ReadPenalty(const char* name, float value, float& penalty) {
  if (!(value >= -kPenaltyMax && value <= kPenaltyMax)) {
    return Invalid(name, " is ", value, ", not in [", -kPenaltyMax, ", ", kPenaltyMax, "].");
  }
  penalty = value;
  return std::nullopt;
}

std::optional<ApiError> ReadBiases(const v1::Sampling& sampling, GenerateRequest& request) {
  for (const auto& [name, size] : {std::pair<const char*, size_t>{"sampling.logit_bias", sampling.logit_bias_size()},
                                   {"sampling.forbidden_ids", sampling.forbidden_ids_size()}}) {
    if (size > kBiasesMax) return Invalid(name, " has ", size, " entries, at most ", kBiasesMax, " are allowed.");
  }
  request.logit_bias = {sampling.logit_bias().begin(), sampling.logit_bias().end()};
  for (const auto& [id, bias] : request.logit_bias) {
    if (!(bias >= -kBiasMax && bias <= kBiasMax)) {
      return Invalid(absl::StrCat("sampling.logit_bias.", id), " is ", bias, ", not in [", -kBiasMax, ", ", kBiasMax,
                     "].");
    }
  }
  request.forbidden_ids = ToVector(sampling.forbidden_ids());
  if (auto error = ReadPenalty("sampling.presence_penalty", sampling.presence_penalty(), request.presence_penalty)) {
    return error;
  }
  if (auto error = ReadPenalty("sampling.frequency_penalty", sampling.frequency_penalty(), request.frequency_penalty)) {
    return error;
  }
  if (!sampling.has_top_log_probabilities()) return std::nullopt;
  if (sampling.top_log_probabilities() > kTopLogProbabilitiesMax) {
    return Invalid("sampling.top_log_probabilities", " is ", sampling.top_log_probabilities(), ", at most ",
                   kTopLogProbabilitiesMax, " is allowed.");
  }
  request.top_log_probabilities = sampling.top_log_probabilities();
  return std::nullopt;
}

std::optional<ApiError> ReadSampling(const v1::Sampling& sampling, const GrpcLimits& limits, GenerateRequest& request) {
  if (sampling.has_temperature()) {
    const float value = sampling.temperature();
    if (!(value >= 0.0f && value <= 2.0f)) return Invalid("sampling.temperature", " is ", value, ", not in [0, 2].");
    request.temperature = value;
  }
  if (sampling.has_top_p()) {
    const float value = sampling.top_p();
    if (!(value > 0.0f && value <= 1.0f)) return Invalid("sampling.top_p", " is ", value, ", not in (0, 1].");
    request.top_p = value;
  }
  if (sampling.top_k() > limits.top_k_max) {
    return Invalid("sampling.top_k", " is ", sampling.top_k(), ", at most ", limits.top_k_max, " is allowed.");
  }
  request.top_k = sampling.top_k();
  if (sampling.has_seed()) request.seed = sampling.seed();
  return ReadBiases(sampling, request);
}

std::optional<ApiError> ReadDecoding(const v1::Decoding& decoding, DecodingChoice& choice) {
  std::variant<DecodingChoice, ApiError> read = FromProto(decoding);
  if (const auto* error = std::get_if<ApiError>(&read)) return *error;
  choice = std::get<DecodingChoice>(read);
  return std::nullopt;
}

// Ids are looked at where the model is known.
void ReadInfill(const v1::Infill& proto, InfillChoice& infill) {
  if (proto.following_case() == v1::Infill::kSuffix) infill.suffix = proto.suffix();
  if (proto.following_case() == v1::Infill::kSuffixIds) infill.suffix = ToVector(proto.suffix_ids().ids());
  infill.fixed_ids = ToVector(proto.fixed_ids());
  if (proto.draft_case() == v1::Infill::kDraftText) infill.draft = proto.draft_text();
  if (proto.draft_case() == v1::Infill::kDraftIds) infill.draft = ToVector(proto.draft_ids().ids());
}

std::optional<ApiError> ReadScheduling(const v1::GenerateRequest& proto, GenerateRequest& request) {
  switch (proto.priority()) {
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_DEFAULT:
      break;
    case v1::PRIORITY_INTERACTIVE:
      request.priority = Priority::kInteractive;
      break;
    case v1::PRIORITY_BATCH:
      request.priority = Priority::kBatch;
      break;
    default:
      return Invalid("priority", " is ", static_cast<int>(proto.priority()), ", which is no priority.");
  }
  if (proto.cache_key().size() > kCacheKeyBytesMax) {
    return Invalid("cache_key", " has ", proto.cache_key().size(), " bytes, at most ", kCacheKeyBytesMax,
                   " are allowed.");
  }
  request.cache_key = proto.cache_key();
  const double target = proto.latency_target_seconds();
  if (target != 0 && !(target >= kLatencyTargetMin && target <= kLatencyTargetMax)) {
    return Invalid("latency_target_seconds", " is ", target, ", neither 0 nor in [", kLatencyTargetMin, ", ",
                   kLatencyTargetMax, "].");
  }
  request.latency_target_seconds = target;
  return std::nullopt;
}

std::optional<ApiError> ReadBounds(const v1::GenerateRequest& proto, const GrpcLimits& limits,
                                   GenerateRequest& request) {
  if (proto.has_max_tokens()) {
    if (proto.max_tokens() == 0) return Invalid("max_tokens", " must be at least 1.");
    request.max_tokens = proto.max_tokens();
  }
  if (proto.stop_size() > limits.stops_max) {
    return Invalid("stop", " has ", proto.stop_size(), " elements, at most ", limits.stops_max, " are allowed.");
  }
  for (int i = 0; i < proto.stop_size(); ++i) {
    if (proto.stop(i).empty()) return Invalid(absl::StrCat("stop[", i, "]"), " must not be empty.");
    if (proto.stop(i).size() > kStopBytesMax) {
      return Invalid(absl::StrCat("stop[", i, "]"), " has ", proto.stop(i).size(), " bytes, at most ", kStopBytesMax,
                     " are allowed.");
    }
    request.stop.push_back(proto.stop(i));
  }
  if (proto.choices() > limits.choices_max) {
    return Invalid("choices", " is ", proto.choices(), ", at most ", limits.choices_max, " are allowed.");
  }
  request.choices = std::max(proto.choices(), 1u);
  request.canvases = proto.canvases();
  return std::nullopt;
}

void Fill(const AlternativeToken& token, v1::TokenLogProbability& proto) {
  proto.set_id(token.id);
  proto.set_text(token.bytes);
  proto.set_log_probability(token.log_probability);
}

v1::Span::Op ToProto(SpanOp op) {
  switch (op) {
    case SpanOp::kReplace:
      return v1::Span::OP_REPLACE;
    case SpanOp::kCommit:
      return v1::Span::OP_COMMIT;
    case SpanOp::kFinal:
      return v1::Span::OP_FINAL;
  }
  return v1::Span::OP_UNSPECIFIED;
}

}  // namespace

std::variant<GenerateRequest, ApiError> FromProto(const v1::GenerateRequest& proto, const GrpcLimits& limits) {
  if (proto.model().empty()) return InvalidRequest("missing_required_parameter", "model", "model is required.");
  GenerateRequest request;
  if (proto.model().size() > kModelBytesMax) {
    return InvalidRequest(
        "invalid_value", "model",
        absl::StrCat("model has ", proto.model().size(), " bytes, at most ", kModelBytesMax, " are allowed."));
  }
  request.model = proto.model();
  if (std::optional<ApiError> error = ReadInput(proto, limits, request)) return *error;
  if (std::optional<ApiError> error = ReadSampling(proto.sampling(), limits, request)) return *error;
  if (std::optional<ApiError> error = ReadDecoding(proto.decoding(), request.decoding)) return *error;
  ReadInfill(proto.infill(), request.infill);
  if (std::optional<ApiError> error = ReadScheduling(proto, request)) return *error;
  if (std::optional<ApiError> error = ReadBounds(proto, limits, request)) return *error;
  return request;
}

grpc::StatusCode GrpcCode(const ApiError& error) {
  if (error.code == "worker_lost") return grpc::StatusCode::ABORTED;  // The group re-forms: ask again.
  switch (error.http_status) {
    case 401:
      return grpc::StatusCode::UNAUTHENTICATED;
    case 403:
      return grpc::StatusCode::PERMISSION_DENIED;
    case 404:
      return grpc::StatusCode::NOT_FOUND;
    case 409:
      return grpc::StatusCode::ALREADY_EXISTS;
    case 413:
    case 429:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case 499:
      return grpc::StatusCode::CANCELLED;
    case 501:
      return grpc::StatusCode::UNIMPLEMENTED;
    case 503:
      return grpc::StatusCode::UNAVAILABLE;
    case 504:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    default:
      return error.http_status < 500 ? grpc::StatusCode::INVALID_ARGUMENT : grpc::StatusCode::INTERNAL;
  }
}

grpc::Status ToStatus(const ApiError& error, const std::string& request_id, const std::string& tenant) {
  const grpc::StatusCode code = GrpcCode(error);
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(error.message);
  google::rpc::ErrorInfo info;
  info.set_reason(absl::AsciiStrToUpper(error.code));
  info.set_domain(kDomain);
  status.add_details()->PackFrom(info);
  google::rpc::RequestInfo request;
  request.set_request_id(request_id);
  status.add_details()->PackFrom(request);
  if (code == grpc::StatusCode::INVALID_ARGUMENT && !error.param.empty()) {
    google::rpc::BadRequest bad;
    auto* violation = bad.add_field_violations();
    violation->set_field(error.param);
    violation->set_description(error.message);
    status.add_details()->PackFrom(bad);
  }
  if (code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(std::max(error.retry_after_seconds, 1));
    status.add_details()->PackFrom(retry);
  }
  if (code == grpc::StatusCode::RESOURCE_EXHAUSTED) {
    google::rpc::QuotaFailure quota;
    auto* violation = quota.add_violations();
    violation->set_subject(absl::StrCat("tenant:", tenant));
    violation->set_description(error.message);
    status.add_details()->PackFrom(quota);
  }
  return grpc::Status(code, error.message, status.SerializeAsString());
}

v1::GenerateEvent ToProto(const StartedEvent& event, const std::string& request_id) {
  v1::GenerateEvent proto;
  v1::Started& started = *proto.mutable_started();
  started.set_request_id(request_id);
  started.set_model(event.model);
  started.set_system_fingerprint(event.system_fingerprint);
  started.set_created(event.created);
  started.set_prompt_tokens(event.prompt_tokens);
  return proto;
}

v1::GenerateEvent ToProto(const DeltaEvent& event) {
  v1::GenerateEvent proto;
  v1::Delta& delta = *proto.mutable_delta();
  delta.set_choice(event.choice);
  delta.set_text(event.text);
  delta.set_block(event.block);
  delta.set_step(event.step);
  for (const WrittenToken& token : event.tokens) {
    v1::TokenLogProbability& told = *delta.add_tokens();
    Fill(token.token, told);
    for (const AlternativeToken& top : token.top) Fill(top, *told.add_top());
  }
  return proto;
}

v1::GenerateEvent ToProto(const FrameEvent& event) {
  v1::GenerateEvent proto;
  v1::Frame& frame = *proto.mutable_frame();
  frame.set_choice(event.choice);
  frame.set_step(event.step);
  frame.set_block(event.block);
  frame.set_epoch(event.epoch);
  frame.set_committed(event.committed);
  frame.set_extent(event.extent);
  for (const FrameSpan& span : event.spans) {
    v1::Span& out = *frame.add_spans();
    out.set_op(ToProto(span.op));
    out.set_first(span.first);
    out.set_tokens(span.tokens);
    out.set_text(span.text);
  }
  return proto;
}

v1::GenerateEvent ToProto(const FinishedEvent& event) {
  v1::GenerateEvent proto;
  v1::Finished& finished = *proto.mutable_finished();
  finished.set_choice(event.choice);
  finished.set_reason(event.reason == FinishReason::kStop ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH);
  finished.set_completion_tokens(event.completion_tokens);
  finished.set_forwards(event.forwards);
  finished.set_tokens_per_forward(event.tokens_per_forward());
  finished.set_time_to_first_token_seconds(event.time_to_first_token_seconds);
  finished.set_decode_seconds(event.decode_seconds);
  finished.set_cached_tokens(event.cached_tokens);
  finished.set_resumes(event.resumes);
  finished.set_preemptions(event.preemptions);
  finished.set_paced_steps(event.paced_steps);
  finished.set_deadline_reached(event.deadline_reached);
  finished.set_policy(static_cast<v1::Policy>(NumberOf(kPolicyNames, event.policy)));
  finished.set_cache(static_cast<v1::Cache>(NumberOf(kCacheNames, event.cache)));
  return proto;
}

v1::Model ToProto(const ModelInfo& info) {
  v1::Model model;
  model.set_id(info.id);
  model.set_created(info.created);
  model.set_max_model_len(info.max_model_len);
  model.set_ready(info.ready);
  model.set_family(info.family);
  for (const std::string_view policy : info.policies) {
    model.add_policies(static_cast<v1::Policy>(NumberOf(kPolicyNames, policy)));
  }
  model.set_infill(info.infill);
  return model;
}

bool IsRequestId(const std::string& id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-';
  });
}

}  // namespace quicksilver
