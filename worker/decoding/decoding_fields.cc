#include "worker/decoding/decoding_fields.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

constexpr float kNatsMax = 20.0f;
constexpr int64_t kNoBound = std::numeric_limits<int32_t>::max();

bool IsOneOf(Policy policy, std::initializer_list<Policy> policies) {
  return std::find(policies.begin(), policies.end(), policy) != policies.end();
}

/// Takes one field after the other and keeps the first refusal.
class Fields {
 public:
  explicit Fields(Policy policy) : policy_(policy) {}

  template <typename T>
  void Check(const char* name, const std::optional<T>& value, bool used, T least, T most) {
    Check(name, value.has_value(), used);
    if (!status_.ok() || !value.has_value() || (*value >= least && *value <= most)) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat("decoding.", name, " (", *value, ") must be in [", least, ", ", most, "]"));
  }
  void Check(const char* name, bool set, bool used) {
    if (!status_.ok() || used || !set) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat("decoding.", name, " must be unset: the policy ", NameOf(policy_), " does not use it"));
  }
  /// What has no default where rows are ranked by negative entropy: those of probabilities are above every rank.
  void Require(const char* name, bool set, bool used) {
    if (!status_.ok() || set || !used) return;
    status_ = absl::InvalidArgumentError(absl::StrCat("decoding.", name, " must be set, in [", -kNatsMax,
                                                      ", 0] nats: it has no default with the confidence entropy"));
  }
  void CheckSchedule(const char* name, bool set, bool used, const char* bound) {
    if (!status_.ok() || used || !set) return;
    status_ = absl::InvalidArgumentError(absl::StrCat("decoding.", name, " must be unset ", bound));
  }
  bool Is(std::initializer_list<Policy> policies) const { return IsOneOf(policy_, policies); }
  const absl::Status& status() const { return status_; }

 private:
  const Policy policy_;
  absl::Status status_;
};

using P = Policy;

void CheckThresholds(const DecodingParams& choice, Fields& fields) {
  const bool nats = fields.Is({P::kMultiBlock, P::kRenoise});
  const bool threshold =
      fields.Is({P::kDynamic, P::kThreshold, P::kHierarchical, P::kCredit, P::kKlass, P::kQuotaThreshold, P::kTokenEdit,
                 P::kInsertDelete, P::kWino, P::kVariableLength, P::kMultiBlock, P::kSubBlock, P::kRenoise});
  // Of ranks that are entropies it is below 0.
  const bool entropy = choice.confidence == Measure::kEntropy;
  if (entropy) {
    const bool low = fields.Is({P::kHierarchical});
    fields.Require("threshold", choice.threshold.has_value(), low || fields.Is({P::kDynamic, P::kThreshold}));
    fields.Require("low_threshold", choice.low_threshold.has_value(), low);
  }
  const float most = entropy ? 0.0f : nats ? kNatsMax : 1.0f;
  fields.Check("threshold", choice.threshold, threshold, entropy ? -kNatsMax : 0.0f, most);
  fields.Check("low_threshold", choice.low_threshold, fields.Is({P::kHierarchical, P::kVariableLength}),
               entropy ? -kNatsMax : 0.0f, entropy ? 0.0f : 1.0f);
  fields.Check("factor", choice.factor, fields.Is({P::kFactor}), 0.0f, 100.0f);
  const bool bound = fields.Is({P::kEntropyBound, P::kEntropySum, P::kRenoise});
  fields.Check("entropy_bound", choice.entropy_bound, bound, 0.0f, 1000.0f);
  fields.Check("kl_threshold", choice.kl_threshold, fields.Is({P::kKlass}), 0.0f, 100.0f);
  fields.Check("verify_threshold", choice.verify_threshold, fields.Is({P::kWino}), 0.0f, 1.0f);
  fields.Check("block_add_threshold", choice.block_add_threshold, fields.Is({P::kMultiBlock}), 0.0f, 1.0f);
  const bool edits = fields.Is({P::kTokenEdit, P::kInsertDelete});
  fields.Check("edit", choice.edit.has_value(), edits);
  fields.Check("edit_threshold", choice.edit_threshold, edits && choice.edit.value_or(true), 0.0f, 1.0f);
  fields.Check("post_steps_max", choice.post_steps_max, edits, int64_t{0}, int64_t{256});
  fields.Check("commits_min", choice.commits_min, fields.Is({P::kDynamic, P::kTokenEdit}), int64_t{1}, kNoBound);
}

void CheckNumbers(const DecodingParams& choice, Fields& fields) {
  const bool credit = fields.Is({P::kCredit});
  fields.Check("credit_alpha", choice.credit_alpha, credit, 0.0f, 10.0f);
  fields.Check("credit_gamma", choice.credit_gamma, credit, 0.0f, 10.0f);
  fields.Check("credit_beta", choice.credit_beta, credit, 0.0f, 1.0f);
  const bool remasking = fields.Is({P::kRemdm});
  const bool loop = remasking && choice.remasking_schedule == RemaskingSchedule::kLoop;
  fields.Check("remasking_schedule", choice.remasking_schedule.has_value(), remasking);
  fields.CheckSchedule("remasking_eta", remasking && choice.remasking_eta.has_value(),
                       choice.remasking_schedule != RemaskingSchedule::kConfidence,
                       "with the remasking_schedule confidence, which does not use it");
  fields.Check("remasking_eta", choice.remasking_eta, remasking, 0.0f, 1.0f);
  fields.Check("remasking_on", choice.remasking_on, loop, 0.0f, 1.0f);
  fields.Check("remasking_off", choice.remasking_off, loop, 0.0f, 1.0f);
  fields.Check("remasking_alpha", choice.remasking_alpha, loop, 0.0f, 1.0f);
  const bool variable = fields.Is({P::kVariableLength});
  fields.Check("initial_length", choice.initial_length, variable, int64_t{1}, kNoBound);
  fields.Check("expansion", choice.expansion, variable, int64_t{1}, int64_t{256});
  fields.Check("eos_threshold", choice.eos_threshold, variable, 0.0f, 1.0f);
  fields.Check("expand_eos_threshold", choice.expand_eos_threshold, variable, 0.0f, 1.0f);
  fields.Check("eos_window", choice.eos_window, variable, int64_t{1}, int64_t{256});
  fields.Check("sub_block_length", choice.sub_block_length, fields.Is({P::kSubBlock}), int64_t{1}, kNoBound);
  fields.Check("confidence_temperature", choice.confidence_temperature,
               fields.Is({P::kMaskgitPlus, P::kTopkMargin, P::kEntropy}), 0.0f, 10.0f);
  const bool renoise = fields.Is({P::kRenoise});
  fields.Check("stability_steps", choice.stability_steps, renoise, int64_t{0}, int64_t{16});
  fields.Check("temperature_min", choice.temperature_min, renoise, 0.0f, 2.0f);
  fields.Check("temperature_max", choice.temperature_max, renoise, 0.0f, 2.0f);
}

}  // namespace

const char* NameOf(Policy policy) {
  constexpr const char* kNames[] = {"static",          "dynamic",     "sequential",    "threshold",   "factor",
                                    "entropy_bound",   "entropy_sum", "hierarchical",  "host",        "credit",
                                    "klass",           "origin",      "maskgit_plus",  "topk_margin", "entropy",
                                    "quota_threshold", "token_edit",  "insert_delete", "wino",        "remdm",
                                    "variable_length", "multi_block", "sub_block",     "renoise",     "autoregressive"};
  return kNames[static_cast<size_t>(policy)];
}

bool IsRankPolicy(Policy policy) { return policy < Policy::kHost; }

bool IsTimeGridPolicy(Policy policy) {
  return IsOneOf(policy, {P::kOrigin, P::kMaskgitPlus, P::kTopkMargin, P::kEntropy, P::kQuotaThreshold});
}

bool MayCache(Policy policy) {
  return IsRankPolicy(policy) || IsTimeGridPolicy(policy) || policy == P::kCredit || policy == P::kKlass;
}

bool NeedsRaw(Policy policy) { return IsOneOf(policy, {P::kCredit, P::kKlass, P::kMultiBlock}); }

absl::Status CheckFields(Policy policy, const DecodingParams& choice) {
  if (choice.remasking == Remasking::kRandom && policy != P::kStatic) {
    return absl::InvalidArgumentError("decoding.remasking (random) must be low_confidence unless the policy is static");
  }
  Fields fields(policy);
  const bool scheduled = HasSchedule(policy) || IsTimeGridPolicy(policy);
  fields.Check("steps", choice.steps.has_value(), scheduled || fields.Is({P::kKlass, P::kRemdm, P::kRenoise}));
  const bool measured = IsRankPolicy(policy) && !fields.Is({P::kEntropyBound, P::kEntropySum, P::kSequential});
  fields.Check("confidence", choice.confidence.has_value(), measured);
  fields.Check("confidence_source", choice.raw_confidence.has_value(),
               !NeedsRaw(policy) && !fields.Is({P::kRenoise, P::kAutoregressive, P::kEntropyBound, P::kEntropySum}));
  fields.Check("distrust_eos", choice.distrust_eos, IsRankPolicy(policy));
  const bool guided = choice.guidance_scale.value_or(0.0f) != 0.0f;
  fields.Check("guidance_scale", guided,
               IsRankPolicy(policy) || fields.Is({P::kCredit, P::kKlass, P::kRemdm, P::kMultiBlock}));
  const Cache cache = choice.cache.value_or(Cache::kNone);
  fields.Check("cache", cache != Cache::kNone, MayCache(policy));
  const bool vicinity = cache == Cache::kVicinity;
  fields.Check("vicinity_before", choice.vicinity_before, vicinity, int64_t{0}, int64_t{4096});
  fields.Check("vicinity_after", choice.vicinity_after, vicinity, int64_t{0}, int64_t{4096});
  fields.Check("vicinity_warmup", choice.vicinity_warmup, vicinity, int64_t{0}, int64_t{4096});
  CheckThresholds(choice, fields);
  CheckNumbers(choice, fields);
  return fields.status();
}

}  // namespace quicksilver
