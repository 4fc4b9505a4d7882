#include "coordinator/service/prepare.h"

#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/core/prefix_chain.h"
#include "coordinator/service/decoding_proto.h"
#include "coordinator/service/prepare_terms.h"
#include "coordinator/text/utf8.h"

namespace quicksilver {
namespace {

ApiError TooLong(const GenerateRequest& request, const ModelFacts& model, const std::string& asked) {
  return InvalidRequest(
      "context_length_exceeded", InputParam(request),
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

void FillTerms(const GenerateRequest& request, const ModelFacts& model, const SamplingDefaults& defaults,
               uint64_t random_seed, v1::Submit& submit) {
  submit.mutable_stop_ids()->Assign(model.stop_ids.begin(), model.stop_ids.end());
  v1::ResolvedSampling& sampling = *submit.mutable_sampling();
  sampling.set_temperature(request.temperature.value_or(defaults.temperature));
  sampling.set_top_p(request.top_p.value_or(defaults.top_p));
  sampling.set_top_k(request.top_k);
  sampling.set_seed(request.seed ? static_cast<uint64_t>(*request.seed) : random_seed);
  sampling.set_presence_penalty(request.presence_penalty);
  sampling.set_frequency_penalty(request.frequency_penalty);
  sampling.set_log_probabilities(request.top_log_probabilities.has_value());
  sampling.set_top_log_probabilities(request.top_log_probabilities.value_or(0));
  *submit.mutable_decoding() = ToProto(request.decoding);
  submit.set_provisional(request.canvases);
  submit.set_priority(ToProto(request.priority));
  submit.set_tenant(request.tenant);
  submit.set_cache_salt(CacheSalt(request.tenant, request.cache_key));
}

uint64_t PromptCharacters(const GenerateRequest& request, const TextModel& text) {
  if (!request.top_log_probabilities) return 0;
  if (const auto* prompt = std::get_if<std::string>(&request.input)) return CountCodePoints(*prompt);
  const auto* ids = std::get_if<std::vector<int32_t>>(&request.input);
  if (ids == nullptr) return 0;
  Detokenizer detokenizer(text);
  uint64_t characters = 0;
  for (const int32_t id : *ids) characters += CountCodePoints(detokenizer.Push(id));
  return characters + CountCodePoints(detokenizer.Finish());
}

// The prompt's ids, into `submit`.
std::optional<ApiError> PreparePrompt(const GenerateRequest& request, const TextModel& text, const ModelFacts& model,
                                      v1::Submit& submit) {
  const char* param = InputParam(request);
  // Some way beyond the limit the count is still worth telling.
  const size_t ids_max = 4 * static_cast<size_t>(model.max_model_len);
  absl::StatusOr<std::vector<int32_t>> ids = Encode(request, text, ids_max);
  if (absl::IsResourceExhausted(ids.status())) {
    return TooLong(request, model, absl::StrCat("your ", param, " resulted in more than ", ids_max, " tokens"));
  }
  if (!ids.ok()) return InvalidRequest("invalid_value", param, std::string(ids.status().message()));
  if (std::holds_alternative<std::vector<int32_t>>(request.input)) {
    if (std::optional<ApiError> error = CheckIds(param, *ids, model)) return error;
  }
  if (ids->empty()) {
    // What the API means by an empty prompt: the beginning of a document.
    const int32_t beginning = text.FindSpecial("<|endoftext|>");
    if (beginning < 0)
      return InvalidRequest("invalid_value", param, absl::StrCat("The ", param, " must not be empty."));
    ids->push_back(beginning);
  }
  submit.mutable_prompt_ids()->Assign(ids->begin(), ids->end());
  return std::nullopt;
}

// max_tokens, into `submit`: what is asked for, or what the model's length leaves.
std::optional<ApiError> PrepareLength(const GenerateRequest& request, const ModelFacts& model, v1::Submit& submit) {
  const char* param = InputParam(request);
  const uint64_t prompt = static_cast<uint64_t>(submit.prompt_ids_size());
  const uint64_t suffix = static_cast<uint64_t>(submit.suffix_ids_size());
  const std::string and_suffix = suffix == 0 ? "" : absl::StrCat(", ", suffix, " in the suffix");
  if (prompt + suffix >= model.max_model_len) {
    return TooLong(request, model, absl::StrCat("your ", param, " resulted in ", prompt, " tokens", and_suffix));
  }
  const uint64_t left = model.max_model_len - prompt - suffix;
  const uint64_t max_tokens = request.max_tokens.value_or(std::min<uint64_t>(left, request.max_tokens_default));
  if (max_tokens > left) {
    return TooLong(request, model,
                   absl::StrCat("you requested ", prompt + suffix + max_tokens, " tokens (", prompt, " in the ", param,
                                and_suffix, ", ", max_tokens, " in the completion)"));
  }
  submit.set_max_tokens(static_cast<uint32_t>(max_tokens));
  return std::nullopt;
}

}  // namespace

const char* InputParam(const GenerateRequest& request) { return request.input.index() == 0 ? "messages" : "prompt"; }

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
  PreparedRequest prepared;
  v1::Submit& submit = prepared.submit;
  if (std::optional<ApiError> error = CheckPolicy(request.decoding, model)) return *error;
  if (std::optional<ApiError> error = PreparePrompt(request, text, model, submit)) return *error;
  if (std::optional<ApiError> error = PrepareInfill(request.infill, text, model, submit)) return *error;
  if (std::optional<ApiError> error = PrepareLength(request, model, submit)) return *error;
  if (std::optional<ApiError> error = CheckInfillLength(submit)) return *error;
  if (std::optional<ApiError> error = PrepareBiases(request, model, *submit.mutable_sampling())) return *error;
  FillTerms(request, model, defaults, random_seed, submit);
  prepared.prompt_tokens = static_cast<uint32_t>(submit.prompt_ids_size() + submit.suffix_ids_size());
  prepared.max_tokens = submit.max_tokens();
  prepared.prompt_characters = PromptCharacters(request, text);
  prepared.prefix =
      PrefixChain(absl::MakeConstSpan(submit.prompt_ids().data(), static_cast<size_t>(submit.prompt_ids_size())),
                  submit.cache_salt());
  return prepared;
}

}  // namespace quicksilver
