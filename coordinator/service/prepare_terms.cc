#include "coordinator/service/prepare_terms.h"

#include <algorithm>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

template <typename... Parts>
ApiError Invalid(const std::string& path, const Parts&... parts) {
  return InvalidRequest("invalid_value", path, absl::StrCat(parts...));
}

std::string Named(const ModelFacts& model) {
  return absl::StrCat("Model `", model.name, "`",
                      model.family.empty() ? "" : absl::StrCat(" of family ", model.family));
}

std::optional<ApiError> CheckId(const std::string& path, int32_t id, const ModelFacts& model) {
  if (id >= 0 && static_cast<uint32_t>(id) < model.vocabulary) return std::nullopt;
  return Invalid(path, path, ": token id ", id, " is not in [0, ", model.vocabulary, ").");
}

// Ids of which some are to be decided.
std::optional<ApiError> CheckPartialIds(const std::string& path, const std::vector<int32_t>& ids,
                                        const ModelFacts& model) {
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string at = absl::StrCat(path, "[", i, "]");
    if (ids[i] == InfillChoice::kUndecided) continue;
    if (std::optional<ApiError> error = CheckId(at, ids[i], model)) return error;
    if (ids[i] == model.mask_id) {
      return Invalid(at, at, ": token id ", ids[i], " is the mask token; a position to be decided is ",
                     InfillChoice::kUndecided, ".");
    }
  }
  return std::nullopt;
}

// What more ids than these there are: the answer would have no place.
size_t IdsMax(const ModelFacts& model) { return model.max_model_len; }

std::optional<ApiError> EncodeInto(const std::string& path, const std::string& text, const TextModel& model,
                                   const ModelFacts& facts, google::protobuf::RepeatedField<int32_t>& out) {
  absl::StatusOr<std::vector<int32_t>> ids = model.Encode(text, IdsMax(facts));
  if (absl::IsResourceExhausted(ids.status())) {
    return InvalidRequest(
        "context_length_exceeded", path,
        absl::StrCat(path, " has more than ", IdsMax(facts), " tokens, this model's maximum context length."));
  }
  if (!ids.ok()) return Invalid(path, path, ": ", ids.status().message());
  out.Assign(ids->begin(), ids->end());
  return std::nullopt;
}

std::optional<ApiError> PrepareSuffix(const InfillChoice& infill, const TextModel& text, const ModelFacts& model,
                                      v1::Submit& submit) {
  if (const auto* suffix = std::get_if<std::string>(&infill.suffix)) {
    return EncodeInto("infill.suffix", *suffix, text, model, *submit.mutable_suffix_ids());
  }
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&infill.suffix)) {
    submit.mutable_suffix_ids()->Assign(ids->begin(), ids->end());
    return CheckIds("infill.suffix_ids", *ids, model);
  }
  return std::nullopt;
}

std::optional<ApiError> PrepareDraft(const InfillChoice& infill, const TextModel& text, const ModelFacts& model,
                                     v1::Submit& submit) {
  if (const auto* draft = std::get_if<std::string>(&infill.draft)) {
    return EncodeInto("infill.draft_text", *draft, text, model, *submit.mutable_draft_ids());
  }
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&infill.draft)) {
    submit.mutable_draft_ids()->Assign(ids->begin(), ids->end());
    return CheckPartialIds("infill.draft_ids", *ids, model);
  }
  return std::nullopt;
}

ApiError NoRightContext(const char* path, const char* what, const ModelFacts& model) {
  return InvalidRequest("unsupported_parameter", path,
                        absl::StrCat(Named(model), " cannot see right context, so it takes no ", path, "; ", what));
}

}  // namespace

std::optional<ApiError> CheckPolicy(const DecodingChoice& decoding, const ModelFacts& model) {
  const std::optional<double> policy = decoding.Get("policy");
  if (!policy || model.policies.empty()) return std::nullopt;
  const std::string_view name = kPolicyNames[static_cast<size_t>(*policy) - 1];
  std::string known;
  for (const std::string_view one : model.policies) known.append(known.empty() ? "" : ", ").append(one);
  if (std::find(model.policies.begin(), model.policies.end(), name) != model.policies.end()) return std::nullopt;
  return Invalid("decoding.policy", Named(model), " cannot run decoding.policy ", std::string(name), "; it runs ",
                 known, ".");
}

std::optional<ApiError> CheckIds(const std::string& path, const std::vector<int32_t>& ids, const ModelFacts& model) {
  for (const int32_t id : ids) {
    if (std::optional<ApiError> error = CheckId(path, id, model)) return error;
    if (id == model.mask_id) {
      return Invalid(path, path, ": token id ", id, " is the mask token, which it may not hold.");
    }
  }
  return std::nullopt;
}

std::optional<ApiError> PrepareInfill(const InfillChoice& infill, const TextModel& text, const ModelFacts& model,
                                      v1::Submit& submit) {
  if (std::optional<ApiError> error = PrepareSuffix(infill, text, model, submit)) return error;
  if (std::optional<ApiError> error = PrepareDraft(infill, text, model, submit)) return error;
  if (std::optional<ApiError> error = CheckPartialIds("infill.fixed_ids", infill.fixed_ids, model)) return error;
  submit.mutable_fixed_ids()->Assign(infill.fixed_ids.begin(), infill.fixed_ids.end());
  if (model.infill) return std::nullopt;
  if (!submit.suffix_ids().empty()) {
    return NoRightContext("infill.suffix",
                          "put both sides of the gap into the prompt, in the model's own prompt format.", model);
  }
  // A canvas sees all of itself.
  if (!submit.fixed_ids().empty() && model.grid != v1::GRID_CANVAS) {
    return NoRightContext("infill.fixed_ids", "only what stands before the answer can be given, in the prompt.", model);
  }
  return std::nullopt;
}

std::optional<ApiError> CheckInfillLength(const v1::Submit& submit) {
  for (const auto& [path, ids] : {std::pair<const char*, int>{"infill.fixed_ids", submit.fixed_ids_size()},
                                  {"infill.draft_ids", submit.draft_ids_size()}}) {
    if (static_cast<uint32_t>(ids) <= submit.max_tokens()) continue;
    return Invalid(path, path, " has ", ids, " tokens, but the answer has ", submit.max_tokens(), " (max_tokens).");
  }
  return std::nullopt;
}

std::optional<ApiError> PrepareBiases(const GenerateRequest& request, const ModelFacts& model,
                                      v1::ResolvedSampling& sampling) {
  constexpr float kForbidden = -std::numeric_limits<float>::infinity();
  std::map<int32_t, float> biases;
  for (const auto& [id, bias] : request.logit_bias) {
    if (std::optional<ApiError> error = CheckId(absl::StrCat("sampling.logit_bias.", id), id, model)) return error;
    biases[id] = bias <= -kBiasMax ? kForbidden : bias;
  }
  for (size_t i = 0; i < request.forbidden_ids.size(); ++i) {
    const int32_t id = request.forbidden_ids[i];
    if (std::optional<ApiError> error = CheckId(absl::StrCat("sampling.forbidden_ids[", i, "]"), id, model)) {
      return error;
    }
    biases[id] = kForbidden;
  }
  for (const auto& [id, bias] : biases) {
    v1::TokenBias& out = *sampling.add_biases();
    out.set_id(id);
    out.set_bias(bias);
  }
  return std::nullopt;
}

}  // namespace quicksilver
