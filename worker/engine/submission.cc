#include "worker/engine/submission.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

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

absl::StatusOr<DecodingParams> ReadChoice(const v1::Decoding& decoding) {
  DecodingParams choice;
  switch (decoding.policy()) {
    case v1::POLICY_UNSPECIFIED:
      break;
    case v1::POLICY_STATIC:
      choice.policy = Policy::kStatic;
      break;
    case v1::POLICY_DYNAMIC:
      choice.policy = Policy::kDynamic;
      break;
    case v1::POLICY_SEQUENTIAL:
      choice.policy = Policy::kSequential;
      break;
    case v1::POLICY_THRESHOLD:
      choice.policy = Policy::kThreshold;
      break;
    default:
      return Refuse("decoding.policy", static_cast<int>(decoding.policy()), "a known policy");
  }
  switch (decoding.remasking()) {
    case v1::REMASKING_UNSPECIFIED:
      break;
    case v1::REMASKING_LOW_CONFIDENCE:
      choice.remasking = Remasking::kLowConfidence;
      break;
    case v1::REMASKING_RANDOM:
      choice.remasking = Remasking::kRandom;
      break;
    default:
      return Refuse("decoding.remasking", static_cast<int>(decoding.remasking()), "a known remasking");
  }
  if (decoding.has_block_length()) choice.block_length = decoding.block_length();
  if (decoding.has_steps()) choice.steps = decoding.steps();
  if (decoding.has_threshold()) choice.threshold = decoding.threshold();
  if (decoding.has_guidance_scale()) choice.guidance_scale = decoding.guidance_scale();
  choice.suppress_eos = decoding.suppress_eos();
  choice.distrust_eos = decoding.distrust_eos();
  return choice;
}

absl::StatusOr<SamplingRule> ReadSampling(const v1::Submit& submit) {
  const v1::ResolvedSampling& sampling = submit.sampling();
  if (sampling.top_k() > static_cast<uint32_t>(kTopLogitsMax)) {
    return Refuse("sampling.top_k", sampling.top_k(), absl::StrCat("in [0, ", kTopLogitsMax, "]"));
  }
  SamplingRule rule;
  rule.temperature = sampling.temperature();
  // An absent message is a message of zeros.
  rule.top_p = submit.has_sampling() ? sampling.top_p() : 1.0f;
  rule.top_k = static_cast<int32_t>(sampling.top_k());
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
  if (checkpoint.tokens_size() > model.positions_max) {
    return Refuse("checkpoint.tokens", checkpoint.tokens_size(),
                  absl::StrCat("at most ", model.positions_max, " long"));
  }
  for (int i = 0; i < checkpoint.tokens_size(); ++i) {
    const TokenId token = checkpoint.tokens(i);
    if (token < -1 || token >= model.tokens || token == model.mask_id) {
      return Refuse(
          absl::StrCat("checkpoint.tokens[", i, "]"), token,
          absl::StrCat("in [0, ", model.tokens, ") and not the mask token's (", model.mask_id, "), or -1 for a mask"));
    }
    resumption.tokens.push_back(token);
  }
  return resumption;
}

std::vector<TokenId> SortedIds(const google::protobuf::RepeatedField<int32_t>& ids) {
  std::vector<TokenId> sorted(ids.begin(), ids.end());
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  return sorted;
}

}  // namespace

absl::StatusOr<SequenceSpec> MakeSequenceSpec(const ModelSpec& model, const v1::Submit& submit, bool finish_blocks) {
  RETURN_IF_ERROR(CheckLengths(submit, model));
  RETURN_IF_ERROR(CheckTerms(submit));
  RETURN_IF_ERROR(CheckIds("prompt_ids", submit.prompt_ids(), model));
  RETURN_IF_ERROR(CheckIds("stop_ids", submit.stop_ids(), model));
  SequenceSpec spec;
  spec.grid = model.grid;
  spec.mask_id = model.mask_id;
  spec.positions_max = static_cast<int32_t>(model.positions_max);
  spec.prompt.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
  spec.tokens_max = static_cast<int32_t>(submit.max_tokens());
  spec.stop_ids = SortedIds(submit.stop_ids());
  spec.eos_ids = model.stop_ids;
  spec.finish_blocks = finish_blocks;
  ASSIGN_OR_RETURN(spec.sampling, ReadSampling(submit));
  ASSIGN_OR_RETURN(const DecodingParams choice, ReadChoice(submit.decoding()));
  ASSIGN_OR_RETURN(spec.decoding, ResolveDecoding(model, choice, spec.tokens_max));
  if (submit.has_checkpoint()) {
    ASSIGN_OR_RETURN(spec.resumption, ReadCheckpoint(submit.checkpoint(), model));
    RETURN_IF_ERROR(CheckResumption(spec));
  }
  return spec;
}

}  // namespace quicksilver
