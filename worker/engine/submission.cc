#include "worker/engine/submission.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/engine/decoding_wire.h"

namespace quicksilver {
namespace {

template <typename T>
absl::Status Refuse(const std::string& field, T value, const std::string& bound) {
  return absl::InvalidArgumentError(absl::StrCat(field, " (", value, ") must be ", bound));
}

absl::Status CheckIds(const char* field, const google::protobuf::RepeatedField<int32_t>& ids, const ModelSpec& model) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= model.tokens) {
      return Refuse(absl::StrCat(field, "[", i, "]"), ids[i], absl::StrCat("in [0, ", model.tokens, ")"));
    }
    if (ids[i] == model.mask_id) {
      return Refuse(absl::StrCat(field, "[", i, "]"), ids[i], "another id than the mask token's");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLengths(const v1::Submit& submit, const ModelSpec& model) {
  if (submit.prompt_ids().empty()) return Refuse("prompt_ids", 0, "at least 1 token long");
  if (submit.max_tokens() < 1) return Refuse("max_tokens", submit.max_tokens(), "at least 1");
  const int64_t positions = int64_t{submit.prompt_ids_size()} + submit.max_tokens();
  if (positions > model.positions_max) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_ids (", submit.prompt_ids_size(), ") and max_tokens (",
                                                   submit.max_tokens(), ") must be at most ", model.positions_max,
                                                   " positions together"));
  }
  if (submit.stop_ids_size() > kStopIdsMax) {
    return Refuse("stop_ids", submit.stop_ids_size(), absl::StrCat("at most ", kStopIdsMax, " ids"));
  }
  return absl::OkStatus();
}

absl::StatusOr<SamplingRule> ReadSampling(const v1::Submit& submit, const ModelSpec& model) {
  const v1::ResolvedSampling& sampling = submit.sampling();
  if (sampling.top_k() > static_cast<uint32_t>(kTopLogitsMax)) {
    return Refuse("sampling.top_k", sampling.top_k(), absl::StrCat("in [0, ", kTopLogitsMax, "]"));
  }
  SamplingRule rule;
  rule.temperature = sampling.temperature();
  // An absent message is a message of zeros.
  rule.top_p = submit.has_sampling() ? sampling.top_p() : 1.0f;
  rule.top_k = static_cast<int32_t>(sampling.top_k());
  // Dream's reference truncates before it looks at confidences, whatever the temperature.
  rule.top_p_first = rule.truncate_greedy = model.grid == BlockGrid::kAfterPrompt && model.shift;
  rule.seed = sampling.seed();
  rule.choice = submit.choice();
  RETURN_IF_ERROR(CheckSampling(rule));
  return rule;
}

absl::Status CheckTerms(const v1::Submit& submit) {
  if (!v1::Priority_IsValid(submit.priority())) {
    return Refuse("priority", static_cast<int>(submit.priority()), "a known priority");
  }
  if (submit.tenant().size() > kSubmitTenantBytesMax) {
    return Refuse("tenant", submit.tenant().size(), absl::StrCat("at most ", kSubmitTenantBytesMax, " bytes"));
  }
  if (submit.cache_salt().size() > kCacheSaltBytesMax) {
    return Refuse("cache_salt", submit.cache_salt().size(), absl::StrCat("at most ", kCacheSaltBytesMax, " bytes"));
  }
  for (const auto& [field, micros] : {std::pair<const char*, uint64_t>{"deadline_micros", submit.deadline_micros()},
                                      {"target_micros", submit.target_micros()}}) {
    if (micros > kTermMicrosMax) return Refuse(field, micros, absl::StrCat("at most ", kTermMicrosMax));
  }
  return absl::OkStatus();
}

// Counts are as large as they can be when they are too large for any sequence, and then refused.
absl::StatusOr<Resumption> ReadCheckpoint(const v1::Checkpoint& checkpoint, const ModelSpec& model) {
  const auto count = [](uint32_t value) {
    return static_cast<int32_t>(std::min<uint32_t>(value, std::numeric_limits<int32_t>::max()));
  };
  Resumption resumption;
  resumption.forwards = count(checkpoint.step());
  resumption.block_forwards = count(checkpoint.block_step());
  resumption.final_before = count(checkpoint.final_before());
  resumption.canvas_length = count(checkpoint.canvas_length());
  if (checkpoint.tokens_size() > model.positions_max) {
    return Refuse("checkpoint.tokens", checkpoint.tokens_size(),
                  absl::StrCat("at most ", model.positions_max, " long"));
  }
  for (int i = 0; i < checkpoint.tokens_size(); ++i) {
    const TokenId token = checkpoint.tokens(i);
    if (token < -1 || token >= model.tokens || (token >= 0 && token == model.mask_id)) {
      return Refuse(
          absl::StrCat("checkpoint.tokens[", i, "]"), token,
          absl::StrCat("in [0, ", model.tokens, ") and not the mask token's (", model.mask_id, "), or -1 for a mask"));
    }
    resumption.tokens.push_back(token);
  }
  return resumption;
}

// Tokens of the answer's positions; -1: none.
absl::StatusOr<std::vector<TokenId>> ReadGiven(const char* field, const google::protobuf::RepeatedField<int32_t>& ids,
                                               const ModelSpec& model) {
  std::vector<TokenId> given;
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < -1 || ids[i] >= model.tokens) {
      return Refuse(absl::StrCat(field, "[", i, "]"), ids[i], absl::StrCat("in [0, ", model.tokens, "), or -1"));
    }
    if (ids[i] >= 0 && ids[i] == model.mask_id) {
      return Refuse(absl::StrCat(field, "[", i, "]"), ids[i], "another id than the mask token's");
    }
    given.push_back(ids[i]);
  }
  return given;
}

absl::Status ReadBiases(const v1::ResolvedSampling& sampling, const ModelSpec& model, SequenceSpec& spec) {
  if (sampling.biases_size() > kBiasesMax) {
    return Refuse("sampling.biases", sampling.biases_size(), absl::StrCat("at most ", kBiasesMax, " ids"));
  }
  TokenId last = -1;
  for (int i = 0; i < sampling.biases_size(); ++i) {
    const v1::TokenBias& bias = sampling.biases(i);
    const std::string field = absl::StrCat("sampling.biases[", i, "]");
    if (bias.id() <= last || bias.id() >= model.tokens) {
      return Refuse(absl::StrCat(field, ".id"), bias.id(),
                    absl::StrCat("above the id before it and below ", model.tokens));
    }
    if (!(bias.bias() <= kBiasMax)) {
      return Refuse(absl::StrCat(field, ".bias"), bias.bias(), absl::StrCat("a number of at most ", kBiasMax));
    }
    last = bias.id();
    spec.biases.push_back({bias.id(), bias.bias()});
  }
  for (const auto& [field, penalty] : {std::pair{"sampling.presence_penalty", sampling.presence_penalty()},
                                       std::pair{"sampling.frequency_penalty", sampling.frequency_penalty()}}) {
    if (!(penalty >= -2.0f && penalty <= 2.0f)) return Refuse(field, penalty, "in [-2, 2]");
  }
  spec.presence_penalty = sampling.presence_penalty();
  spec.frequency_penalty = sampling.frequency_penalty();
  if (sampling.top_log_probabilities() > static_cast<uint32_t>(kTopReportedMax)) {
    return Refuse("sampling.top_log_probabilities", sampling.top_log_probabilities(),
                  absl::StrCat("at most ", kTopReportedMax));
  }
  spec.tops = static_cast<int32_t>(sampling.top_log_probabilities());
  return absl::OkStatus();
}

// Tokens that delete and insert mean nothing to policies that do neither (models.md §10).
void ForbidControlTokens(const ModelSpec& model, SequenceSpec& spec) {
  if (spec.decoding.policy == Policy::kInsertDelete) return;
  for (const TokenId id : {model.delete_id, model.insert_id}) {
    if (id < 0) continue;
    const auto at = std::lower_bound(spec.biases.begin(), spec.biases.end(), id,
                                     [](const TokenBias& bias, TokenId wanted) { return bias.id < wanted; });
    const bool stated = at != spec.biases.end() && at->id == id;
    (stated ? *at : *spec.biases.insert(at, {id, 0.0f})).bias = -std::numeric_limits<float>::infinity();
  }
}

// Uniform noise has a sampler of its own.
bool IsPenalised(const SequenceSpec& spec) { return spec.presence_penalty != 0.0f || spec.frequency_penalty != 0.0f; }

// It looks at every row of the answer in each step, and each would have a list of its own.
absl::Status CheckVariableLength(const SequenceSpec& spec) {
  if (spec.decoding.policy != Policy::kVariableLength || !IsPenalised(spec)) return absl::OkStatus();
  return Refuse("sampling.presence_penalty", spec.presence_penalty,
                "0, and so frequency_penalty, with the policy variable_length");
}

absl::Status CheckRenoise(const SequenceSpec& spec) {
  if (spec.decoding.policy != Policy::kRenoise) return absl::OkStatus();
  if (spec.sampling.top_k > 0) return Refuse("sampling.top_k", spec.sampling.top_k, "0 with the policy renoise");
  if (spec.sampling.top_p < 1.0f) return Refuse("sampling.top_p", spec.sampling.top_p, "1 with the policy renoise");
  if (!spec.biases.empty()) return Refuse("sampling.biases", spec.biases.size(), "empty with the policy renoise");
  if (IsPenalised(spec)) {
    return Refuse("sampling.presence_penalty", spec.presence_penalty,
                  "0, and so frequency_penalty, with the policy renoise");
  }
  return absl::OkStatus();
}

// A row with nothing left to choose has no candidate.
absl::Status CheckSomeAllowed(const ModelSpec& model, const SequenceSpec& spec) {
  int64_t left = model.tokens;
  const TokenId suppressed = spec.decoding.suppressed_id;
  if (model.mask_id >= 0 && model.mask_id < model.tokens) --left;
  if (suppressed >= 0 && suppressed != model.mask_id) --left;
  for (const TokenBias& bias : spec.biases) {
    if (bias.id == model.mask_id || bias.id == suppressed) continue;
    if (bias.bias == -std::numeric_limits<float>::infinity()) --left;
  }
  if (left > 0) return absl::OkStatus();
  return Refuse("sampling.biases", spec.biases.size(), absl::StrCat("such that one of ", model.tokens, " ids is left"));
}

std::vector<TokenId> SortedIds(const google::protobuf::RepeatedField<int32_t>& ids) {
  std::vector<TokenId> sorted(ids.begin(), ids.end());
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  return sorted;
}

}  // namespace

absl::StatusOr<SequenceSpec> MakeSequenceSpec(const ModelSpec& model, const v1::Submit& submit) {
  RETURN_IF_ERROR(CheckLengths(submit, model));
  RETURN_IF_ERROR(CheckTerms(submit));
  RETURN_IF_ERROR(CheckIds("prompt_ids", submit.prompt_ids(), model));
  RETURN_IF_ERROR(CheckIds("stop_ids", submit.stop_ids(), model));
  SequenceSpec spec;
  spec.grid = model.grid;
  spec.shift = model.shift;
  spec.mask_id = model.mask_id;
  spec.positions_max = static_cast<int32_t>(model.positions_max);
  spec.prompt.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
  spec.tokens_max = static_cast<int32_t>(submit.max_tokens());
  spec.stop_ids = SortedIds(submit.stop_ids());
  ASSIGN_OR_RETURN(spec.sampling, ReadSampling(submit, model));
  RETURN_IF_ERROR(ReadBiases(submit.sampling(), model, spec));
  ASSIGN_OR_RETURN(const DecodingParams choice, ReadDecoding(submit.decoding()));
  ASSIGN_OR_RETURN(spec.decoding, ResolveDecoding(model, choice, spec.tokens_max));
  RETURN_IF_ERROR(CheckRenoise(spec));
  RETURN_IF_ERROR(CheckVariableLength(spec));
  ForbidControlTokens(model, spec);
  RETURN_IF_ERROR(CheckSomeAllowed(model, spec));
  RETURN_IF_ERROR(CheckIds("suffix_ids", submit.suffix_ids(), model));
  spec.suffix.assign(submit.suffix_ids().begin(), submit.suffix_ids().end());
  ASSIGN_OR_RETURN(spec.fixed, ReadGiven("fixed_ids", submit.fixed_ids(), model));
  ASSIGN_OR_RETURN(spec.draft, ReadGiven("draft_ids", submit.draft_ids(), model));
  RETURN_IF_ERROR(CheckInfill(spec));
  if (submit.has_checkpoint()) {
    ASSIGN_OR_RETURN(spec.resumption, ReadCheckpoint(submit.checkpoint(), model));
    RETURN_IF_ERROR(CheckResumption(spec));
  }
  return spec;
}

}  // namespace quicksilver
