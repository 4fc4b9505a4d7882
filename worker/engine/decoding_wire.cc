#include "worker/engine/decoding_wire.h"

#include <iterator>
#include <optional>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

template <typename Wire, typename Ours>
struct Pair {
  Wire wire;
  Ours ours;
};

constexpr Pair<v1::Policy, Policy> kPolicies[] = {
    {v1::POLICY_STATIC, Policy::kStatic},
    {v1::POLICY_DYNAMIC, Policy::kDynamic},
    {v1::POLICY_SEQUENTIAL, Policy::kSequential},
    {v1::POLICY_THRESHOLD, Policy::kThreshold},
    {v1::POLICY_FACTOR, Policy::kFactor},
    {v1::POLICY_ENTROPY_BOUND, Policy::kEntropyBound},
    {v1::POLICY_ENTROPY_SUM, Policy::kEntropySum},
    {v1::POLICY_HIERARCHICAL, Policy::kHierarchical},
    {v1::POLICY_CREDIT, Policy::kCredit},
    {v1::POLICY_KLASS, Policy::kKlass},
    {v1::POLICY_ORIGIN, Policy::kOrigin},
    {v1::POLICY_MASKGIT_PLUS, Policy::kMaskgitPlus},
    {v1::POLICY_TOPK_MARGIN, Policy::kTopkMargin},
    {v1::POLICY_ENTROPY, Policy::kEntropy},
    {v1::POLICY_QUOTA_THRESHOLD, Policy::kQuotaThreshold},
    {v1::POLICY_TOKEN_EDIT, Policy::kTokenEdit},
    {v1::POLICY_INSERT_DELETE, Policy::kInsertDelete},
    {v1::POLICY_WINO, Policy::kWino},
    {v1::POLICY_REMDM, Policy::kRemdm},
    {v1::POLICY_VARIABLE_LENGTH, Policy::kVariableLength},
    {v1::POLICY_MULTI_BLOCK, Policy::kMultiBlock},
    {v1::POLICY_SUB_BLOCK, Policy::kSubBlock},
    {v1::POLICY_RENOISE, Policy::kRenoise},
    {v1::POLICY_AUTOREGRESSIVE, Policy::kAutoregressive},
};
constexpr Pair<v1::Profile, Profile> kProfiles[] = {{v1::PROFILE_QUALITY, Profile::kQuality},
                                                    {v1::PROFILE_BALANCED, Profile::kBalanced},
                                                    {v1::PROFILE_FAST, Profile::kFast}};
constexpr Pair<v1::Remasking, Remasking> kRemaskings[] = {{v1::REMASKING_LOW_CONFIDENCE, Remasking::kLowConfidence},
                                                          {v1::REMASKING_RANDOM, Remasking::kRandom}};
constexpr Pair<v1::Confidence, Measure> kConfidences[] = {{v1::CONFIDENCE_PROBABILITY, Measure::kProbability},
                                                          {v1::CONFIDENCE_MARGIN, Measure::kMargin},
                                                          {v1::CONFIDENCE_ENTROPY, Measure::kEntropy}};
constexpr Pair<v1::ConfidenceSource, bool> kSources[] = {{v1::CONFIDENCE_SOURCE_RAW, true},
                                                         {v1::CONFIDENCE_SOURCE_PROCESSED, false}};
constexpr Pair<v1::Edit, bool> kEdits[] = {{v1::EDIT_OFF, false}, {v1::EDIT_THRESHOLD, true}};
constexpr Pair<v1::Cache, Cache> kCaches[] = {{v1::CACHE_NONE, Cache::kNone},
                                              {v1::CACHE_PREFIX, Cache::kPrefix},
                                              {v1::CACHE_DUAL, Cache::kDual},
                                              {v1::CACHE_VICINITY, Cache::kVicinity}};
constexpr Pair<v1::RemaskingSchedule, RemaskingSchedule> kSchedules[] = {
    {v1::REMASKING_SCHEDULE_CAP, RemaskingSchedule::kCap},
    {v1::REMASKING_SCHEDULE_RESCALE, RemaskingSchedule::kRescale},
    {v1::REMASKING_SCHEDULE_CONFIDENCE, RemaskingSchedule::kConfidence},
    {v1::REMASKING_SCHEDULE_LOOP, RemaskingSchedule::kLoop}};

/// 0 is unset on the wire.
template <typename Wire, typename Ours, size_t n>
absl::Status Read(const char* field, Wire wire, const Pair<Wire, Ours> (&pairs)[n], std::optional<Ours>& out) {
  if (static_cast<int>(wire) == 0) return absl::OkStatus();
  for (const Pair<Wire, Ours>& pair : pairs) {
    if (pair.wire != wire) continue;
    out = pair.ours;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("decoding.", field, " (", static_cast<int>(wire), ") must be a known ", field));
}

absl::Status ReadChoices(const v1::Decoding& decoding, DecodingParams& choice) {
  RETURN_IF_ERROR(Read("policy", decoding.policy(), kPolicies, choice.policy));
  RETURN_IF_ERROR(Read("profile", decoding.profile(), kProfiles, choice.profile));
  RETURN_IF_ERROR(Read("remasking", decoding.remasking(), kRemaskings, choice.remasking));
  RETURN_IF_ERROR(Read("confidence", decoding.confidence(), kConfidences, choice.confidence));
  RETURN_IF_ERROR(Read("confidence_source", decoding.confidence_source(), kSources, choice.raw_confidence));
  RETURN_IF_ERROR(Read("edit", decoding.edit(), kEdits, choice.edit));
  RETURN_IF_ERROR(Read("cache", decoding.cache(), kCaches, choice.cache));
  return Read("remasking_schedule", decoding.remasking_schedule(), kSchedules, choice.remasking_schedule);
}

}  // namespace

v1::Policy WireOf(Policy policy) {
  for (const auto& pair : kPolicies) {
    if (pair.ours == policy) return pair.wire;
  }
  return v1::POLICY_UNSPECIFIED;
}

v1::Cache WireOf(Cache cache) {
  for (const auto& pair : kCaches) {
    if (pair.ours == cache) return pair.wire;
  }
  return v1::CACHE_UNSPECIFIED;
}

absl::StatusOr<DecodingParams> ReadDecoding(const v1::Decoding& decoding) {
  DecodingParams choice;
  RETURN_IF_ERROR(ReadChoices(decoding, choice));
  choice.suppress_eos = decoding.suppress_eos();
  choice.distrust_eos = decoding.distrust_eos();
  choice.finish_blocks = decoding.finish_blocks();
#define QS_READ(field) \
  if (decoding.has_##field()) choice.field = decoding.field()
  QS_READ(block_length);
  QS_READ(steps);
  QS_READ(threshold);
  QS_READ(guidance_scale);
  QS_READ(factor);
  QS_READ(entropy_bound);
  QS_READ(low_threshold);
  QS_READ(edit_threshold);
  QS_READ(post_steps_max);
  QS_READ(commits_min);
  QS_READ(vicinity_before);
  QS_READ(vicinity_after);
  QS_READ(vicinity_warmup);
  QS_READ(credit_alpha);
  QS_READ(credit_gamma);
  QS_READ(credit_beta);
  QS_READ(kl_threshold);
  QS_READ(verify_threshold);
  QS_READ(remasking_eta);
  QS_READ(remasking_on);
  QS_READ(remasking_off);
  QS_READ(remasking_alpha);
  QS_READ(block_add_threshold);
  QS_READ(initial_length);
  QS_READ(expansion);
  QS_READ(eos_threshold);
  QS_READ(expand_eos_threshold);
  QS_READ(eos_window);
  QS_READ(sub_block_length);
  QS_READ(confidence_temperature);
  QS_READ(stability_steps);
  QS_READ(temperature_min);
  QS_READ(temperature_max);
#undef QS_READ
  return choice;
}

}  // namespace quicksilver
