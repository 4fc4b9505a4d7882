#include "coordinator/service/prepare.h"

#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/prefix_chain.h"

namespace quicksilver {
namespace {

const char* ParamOf(const GenerateRequest& request) { return request.input.index() == 0 ? "messages" : "prompt"; }

ApiError TooLong(const GenerateRequest& request, const ModelFacts& model, const std::string& asked) {
  return InvalidRequest(
      "context_length_exceeded", ParamOf(request),
      absl::StrCat("This model's maximum context length is ", model.max_model_len, " tokens. However, ", asked, "."));
}

absl::StatusOr<std::vector<int32_t>> Encode(const GenerateRequest& request, const TextModel& text, size_t ids_max) {
  if (const auto* messages = std::get_if<std::vector<ChatMessage>>(&request.input)) {
    std::vector<TemplateMessage> turns;
    for (const ChatMessage& message : *messages) turns.push_back({message.role, message.content, message.name});
    return text.EncodeChat(turns, ids_max);
  }
  if (const auto* prompt = std::get_if<std::string>(&request.input)) return text.Encode(*prompt, ids_max);
  return std::get<std::vector<int32_t>>(request.input);
}

// Ids that a client names itself. The mask is the one control token that has no meaning in a prompt.
std::optional<ApiError> CheckIds(const GenerateRequest& request, const ModelFacts& model) {
  const auto* ids = std::get_if<std::vector<int32_t>>(&request.input);
  if (ids == nullptr) return std::nullopt;
  for (const int32_t id : *ids) {
    if (id < 0 || static_cast<uint32_t>(id) >= model.vocabulary) {
      return InvalidRequest("invalid_value", "prompt",
                            absl::StrCat("Token id ", id, " is not in [0, ", model.vocabulary, ")."));
    }
    if (id == model.mask_id) {
      return InvalidRequest("invalid_value", "prompt",
                            absl::StrCat("Token id ", id, " is the mask token, which a prompt may not hold."));
    }
  }
  return std::nullopt;
}

v1::Policy ToProto(PolicyChoice policy) {
  switch (policy) {
    case PolicyChoice::kDefault:
      return v1::POLICY_UNSPECIFIED;
    case PolicyChoice::kStatic:
      return v1::POLICY_STATIC;
    case PolicyChoice::kDynamic:
      return v1::POLICY_DYNAMIC;
    case PolicyChoice::kSequential:
      return v1::POLICY_SEQUENTIAL;
    case PolicyChoice::kThreshold:
      return v1::POLICY_THRESHOLD;
  }
  return v1::POLICY_UNSPECIFIED;
}

v1::Decoding ToProto(const DecodingChoice& choice) {
  v1::Decoding decoding;
  decoding.set_policy(ToProto(choice.policy));
  if (choice.block_length) decoding.set_block_length(*choice.block_length);
  if (choice.steps) decoding.set_steps(*choice.steps);
  if (choice.threshold) decoding.set_threshold(*choice.threshold);
  if (choice.random_remasking) decoding.set_remasking(v1::REMASKING_RANDOM);
  if (choice.guidance_scale) decoding.set_guidance_scale(*choice.guidance_scale);
  decoding.set_suppress_eos(choice.suppress_eos);
  decoding.set_distrust_eos(choice.distrust_eos);
  return decoding;
}

v1::Priority ToProto(Priority priority) {
  switch (priority) {
    case Priority::kInteractive:
      return v1::PRIORITY_INTERACTIVE;
    case Priority::kDefault:
      return v1::PRIORITY_DEFAULT;
    case Priority::kBatch:
      return v1::PRIORITY_BATCH;
  }
  return v1::PRIORITY_DEFAULT;
}

v1::Submit MakeSubmit(const GenerateRequest& request, const std::vector<int32_t>& ids, uint32_t max_tokens,
                      const ModelFacts& model, const SamplingDefaults& defaults, uint64_t random_seed) {
  v1::Submit submit;
  submit.mutable_prompt_ids()->Assign(ids.begin(), ids.end());
  submit.set_max_tokens(max_tokens);
  submit.mutable_stop_ids()->Assign(model.stop_ids.begin(), model.stop_ids.end());
  v1::ResolvedSampling& sampling = *submit.mutable_sampling();
  sampling.set_temperature(request.temperature.value_or(defaults.temperature));
  sampling.set_top_p(request.top_p.value_or(defaults.top_p));
  sampling.set_top_k(request.top_k);
  sampling.set_seed(request.seed ? static_cast<uint64_t>(*request.seed) : random_seed);
  *submit.mutable_decoding() = ToProto(request.decoding);
  submit.set_provisional(request.canvases);
  submit.set_priority(ToProto(request.priority));
  submit.set_tenant(request.tenant);
  submit.set_cache_salt(CacheSalt(request.tenant, request.cache_key));
  return submit;
}

}  // namespace

std::string CacheSalt(const std::string& tenant, const std::string& cache_key) {
  // The length keeps pairs apart whose joined bytes are equal.
  const std::string joined = absl::StrCat(tenant.size(), ":", tenant, cache_key);
  std::string digest(SHA256_DIGEST_LENGTH, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(joined.data()), joined.size(),
         reinterpret_cast<unsigned char*>(digest.data()));
  return digest;
}

std::variant<PreparedRequest, ApiError> Prepare(const GenerateRequest& request, const TextModel& text,
                                                const ModelFacts& model, const SamplingDefaults& defaults,
                                                uint64_t random_seed) {
  const char* param = ParamOf(request);
  // Some way beyond the limit the count is still worth telling.
  const size_t ids_max = 4 * static_cast<size_t>(model.max_model_len);
  absl::StatusOr<std::vector<int32_t>> ids = Encode(request, text, ids_max);
  if (absl::IsResourceExhausted(ids.status())) {
    return TooLong(request, model, absl::StrCat("your ", param, " resulted in more than ", ids_max, " tokens"));
  }
  if (!ids.ok()) return InvalidRequest("invalid_value", param, std::string(ids.status().message()));
  if (std::optional<ApiError> error = CheckIds(request, model)) return *error;
  if (ids->empty()) {
    // What the API means by an empty prompt: the beginning of a document.
    const int32_t beginning = text.FindSpecial("<|endoftext|>");
    if (beginning < 0)
      return InvalidRequest("invalid_value", param, absl::StrCat("The ", param, " must not be empty."));
    ids->push_back(beginning);
  }
  const uint64_t prompt = ids->size();
  if (prompt >= model.max_model_len) {
    return TooLong(request, model, absl::StrCat("your ", param, " resulted in ", prompt, " tokens"));
  }
  const uint64_t max_tokens = request.max_tokens.value_or(model.max_model_len - static_cast<uint32_t>(prompt));
  if (prompt + max_tokens > model.max_model_len) {
    return TooLong(request, model,
                   absl::StrCat("you requested ", prompt + max_tokens, " tokens (", prompt, " in the ", param, ", ",
                                max_tokens, " in the completion)"));
  }
  PreparedRequest prepared{.prompt_tokens = static_cast<uint32_t>(prompt),
                           .max_tokens = static_cast<uint32_t>(max_tokens)};
  prepared.submit = MakeSubmit(request, *ids, prepared.max_tokens, model, defaults, random_seed);
  prepared.prefix = PrefixChain(*ids, prepared.submit.cache_salt());
  return prepared;
}

}  // namespace quicksilver
