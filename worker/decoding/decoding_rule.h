#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/policy/open_block.h"
#include "worker/decoding/procedure.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// Named settings of a family, as v1::Profile.
enum class Profile : int32_t { kQuality, kBalanced, kFast };
/// What a bidirectional model keeps between the steps of a block, as v1::Cache.
enum class Cache : int32_t { kNone, kPrefix, kDual, kVicinity };
/// As v1::RemaskingSchedule.
enum class RemaskingSchedule : int32_t { kCap, kRescale, kConfidence, kLoop };

/// What a client asked for, as v1::Decoding. Unset fields take the profile's value, then the family's default; a field
/// that is set although the policy does not use it is refused.
struct DecodingParams {
  std::optional<Policy> policy;
  std::optional<Profile> profile;
  std::optional<int64_t> block_length;
  std::optional<int64_t> steps;
  std::optional<float> threshold;
  std::optional<Remasking> remasking;
  std::optional<float> guidance_scale;
  bool suppress_eos = false;
  bool distrust_eos = false;
  bool finish_blocks = false;
  std::optional<Measure> confidence;
  std::optional<bool> raw_confidence;  ///< confidence_source
  std::optional<float> factor;
  std::optional<float> entropy_bound;
  std::optional<float> low_threshold;
  std::optional<bool> edit;
  std::optional<float> edit_threshold;
  std::optional<int64_t> post_steps_max;
  std::optional<int64_t> commits_min;
  std::optional<Cache> cache;
  std::optional<int64_t> vicinity_before;
  std::optional<int64_t> vicinity_after;
  std::optional<int64_t> vicinity_warmup;
  std::optional<float> credit_alpha;
  std::optional<float> credit_gamma;
  std::optional<float> credit_beta;
  std::optional<float> kl_threshold;
  std::optional<float> verify_threshold;
  std::optional<RemaskingSchedule> remasking_schedule;
  std::optional<float> remasking_eta;
  std::optional<float> remasking_on;
  std::optional<float> remasking_off;
  std::optional<float> remasking_alpha;
  std::optional<float> block_add_threshold;
  std::optional<int64_t> initial_length;
  std::optional<int64_t> expansion;
  std::optional<float> eos_threshold;
  std::optional<float> expand_eos_threshold;
  std::optional<int64_t> eos_window;
  std::optional<int64_t> sub_block_length;
  std::optional<float> confidence_temperature;
  std::optional<int64_t> stability_steps;
  std::optional<float> temperature_min;
  std::optional<float> temperature_max;
};

/// How one sequence is decoded: everything that its policy uses is set and within bounds. Fields as in v1::Decoding.
struct DecodingRule {
  Policy policy = Policy::kStatic;
  int32_t block_length = 0;  ///< B
  int32_t steps = 0;         ///< Of one block on the absolute grid and the canvas grid, else of the whole answer. >= 1
  float threshold = 0.9f;
  Remasking remasking = Remasking::kLowConfidence;
  Measure measure = Measure::kProbability;
  float guidance_scale = 0.0f;  ///< 0: no guide rows.
  TokenId suppressed_id = -1;   ///< LLaDA's logits_eos_inf.
  bool distrust_eos = false;    ///< LLaDA's confidence_eos_eot_inf: stop tokens rank last.
  bool raw_confidence = false;  ///< Confidence of the raw softmax even when a token was drawn with noise.
  /// Denoise a block to its end although an answer is already certain to end in it, as most reference procedures do.
  bool finish_blocks = false;
  float factor = 1.0f;
  float entropy_bound = 0.0f;
  float low_threshold = 0.0f;
  bool edit = true;
  float edit_threshold = 0.0f;
  int32_t post_steps_max = 0;
  int32_t commits_min = 1;
  Cache cache = Cache::kNone;
  int32_t vicinity_before = 0;
  int32_t vicinity_after = 0;
  int32_t vicinity_warmup = 0;
  float credit_alpha = 0.0f;
  float credit_gamma = 0.0f;
  float credit_beta = 0.0f;
  float kl_threshold = 0.0f;
  float verify_threshold = 0.0f;
  RemaskingSchedule remasking_schedule = RemaskingSchedule::kCap;
  float remasking_eta = 0.0f;
  float remasking_on = 0.0f;
  float remasking_off = 0.0f;
  float remasking_alpha = 0.0f;
  float block_add_threshold = 0.0f;
  int32_t initial_length = 0;  ///< Positions of the answer's first canvas; 0: all that are wanted.
  int32_t expansion = 0;
  float eos_threshold = 0.0f;
  float expand_eos_threshold = 0.0f;
  int32_t eos_window = 0;
  int32_t sub_block_length = 0;
  float confidence_temperature = 0.0f;
  int32_t stability_steps = 0;
  float temperature_min = 0.0f;
  float temperature_max = 0.0f;
  // What procedures know of the model.
  TokenId mask_id = -1;
  TokenId delete_id = -1;
  TokenId insert_id = -1;
  int32_t vocabulary = 0;        ///< Ids below it are real.
  std::vector<TokenId> eos_ids;  ///< Ascending.
  TokenId eos_id = -1;           ///< ModelSpec::eos_id
};

/// The policies that a request to a model of `spec` may choose, ascending.
std::vector<Policy> AllowedPolicies(const ModelSpec& spec);

/// Resolves a choice for an answer of `tokens_max` tokens. InvalidArgument names the field as in the client's contract,
/// its value and the bound. The defaults are in docs/policies.md.
absl::StatusOr<DecodingRule> ResolveDecoding(const ModelSpec& spec, const DecodingParams& choice, int32_t tokens_max);

/// What a procedure knows besides its rule.
struct ProcedureContext {
  SamplingRule sampling;
  BlockGrid grid = BlockGrid::kAbsolute;
  int32_t answer_length = 0;      ///< Positions of the answer at its beginning, whole blocks included.
  int32_t answer_length_max = 0;  ///< It may grow to so many.
  std::vector<TokenId> draft;     ///< Of the answer from its beginning; -1: none.
};

/// The procedure of a rule. Requires: `rule.policy` is one of AllowedPolicies() of the model.
std::unique_ptr<Procedure> MakeProcedure(const DecodingRule& rule, const ProcedureContext& context);

/// InvalidArgument unless temperature is in [0, 2], top_p in (0, 1], top_k at most kTopLogitsMax and choice < 2^16.
absl::Status CheckSampling(const SamplingRule& rule);

/// Positions of prompt and answer together. The answer is rounded up to whole blocks (the block length counts from
/// position 0 or from the end of the prompt, as the grid says), but never past `positions_max`: the last block may then
/// be short.
int32_t CanvasLength(BlockGrid grid, int32_t prompt, int32_t tokens_max, int32_t block_length, int32_t positions_max);

}  // namespace quicksilver
