#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace quicksilver {

enum class DecodingKind { kName, kCount, kNumber, kFlag };

/// One field of v1::Decoding. `name` is the contract's, the key in JSON and, with dashes, the flag; its value is one of
/// `names` (kName: the number of the contract's enumeration, from 1), or within the bounds.
struct DecodingField {
  std::string_view name;
  DecodingKind kind = DecodingKind::kNumber;
  double min = 0, max = 1;
  std::span<const std::string_view> names = {};
  std::string_view help;
};

inline constexpr std::string_view kPolicyNames[] = {
    "static",      "dynamic",         "sequential",      "threshold",  "factor",        "entropy_bound",
    "entropy_sum", "hierarchical",    "credit",          "klass",      "origin",        "maskgit_plus",
    "topk_margin", "entropy",         "quota_threshold", "token_edit", "insert_delete", "wino",
    "remdm",       "variable_length", "multi_block",     "sub_block",  "renoise",       "autoregressive"};
inline constexpr std::string_view kProfileNames[] = {"quality", "balanced", "fast"};
inline constexpr std::string_view kRemaskingNames[] = {"low_confidence", "random"};
inline constexpr std::string_view kConfidenceNames[] = {"probability", "margin", "entropy"};
inline constexpr std::string_view kConfidenceSourceNames[] = {"raw", "processed"};
inline constexpr std::string_view kEditNames[] = {"off", "threshold"};
inline constexpr std::string_view kCacheNames[] = {"none", "prefix", "dual", "vicinity"};
inline constexpr std::string_view kRemaskingScheduleNames[] = {"cap", "rescale", "confidence", "loop"};

inline constexpr std::span<const std::string_view> kNoNames = {};

/// Of thresholds of entropies; see BoundsOf().
inline constexpr double kNatsMax = 20;

/// Every field, once. Policy and confidence come first: bounds of others follow from them.
inline constexpr DecodingField kDecodingFields[] = {
    {"policy", DecodingKind::kName, 0, 0, kPolicyNames, "Which positions a step writes"},
    {"confidence", DecodingKind::kName, 0, 0, kConfidenceNames, "What rows are ranked by"},
    {"profile", DecodingKind::kName, 0, 0, kProfileNames, "Named settings; other fields go before them"},
    {"cache", DecodingKind::kName, 0, 0, kCacheNames,
     "What a bidirectional model keeps between steps; all but none are approximate"},
    {"block_length", DecodingKind::kCount, 1, 65536, kNoNames, "Positions of a block; block-causal models fix it"},
    {"steps", DecodingKind::kCount, 1, 65536, kNoNames,
     "Denoising steps: of a block, or of the answer of a bidirectional model"},
    {"threshold", DecodingKind::kNumber, -kNatsMax, kNatsMax, kNoNames,
     "Confidence at which a position is written; in nats: multi_block, renoise, and confidence entropy"},
    {"commits_min", DecodingKind::kCount, 1, 65536, kNoNames,
     "token_edit: positions a step writes at least; dynamic: caps the steps"},
    {"remasking", DecodingKind::kName, 0, 0, kRemaskingNames, "What static ranks by"},
    {"confidence_source", DecodingKind::kName, 0, 0, kConfidenceSourceNames,
     "Of the distribution before or behind temperature, top-k and top-p"},
    {"confidence_temperature", DecodingKind::kNumber, 0, 10, kNoNames,
     "Dream's alg_temp: 0 takes the best rows, else they are drawn"},
    {"guidance_scale", DecodingKind::kNumber, 0, 100, kNoNames,
     "Classifier-free guidance of the LLaDA family; 0 is off"},
    {"suppress_eos", DecodingKind::kFlag, 0, 1, kNoNames, "LLaDA's logits_eos_inf"},
    {"distrust_eos", DecodingKind::kFlag, 0, 1, kNoNames, "LLaDA's confidence_eos_eot_inf"},
    {"finish_blocks", DecodingKind::kFlag, 0, 1, kNoNames,
     "Denoise blocks to their end although the answer's end is certain"},
    {"factor", DecodingKind::kNumber, 0, 100, kNoNames, "The larger, the more is written at a time. factor"},
    {"entropy_bound", DecodingKind::kNumber, 0, 1000, kNoNames, "Nats. entropy_bound, entropy_sum, renoise"},
    {"low_threshold", DecodingKind::kNumber, -kNatsMax, 1, kNoNames,
     "The same for the best of a run of masks, or of a step. hierarchical, variable_length"},
    {"edit", DecodingKind::kName, 0, 0, kEditNames,
     "Whether written tokens may be replaced. token_edit, insert_delete"},
    {"edit_threshold", DecodingKind::kNumber, 0, 1, kNoNames,
     "Confidence at which they are. token_edit, insert_delete"},
    {"post_steps_max", DecodingKind::kCount, 0, 256, kNoNames,
     "Steps that may edit after the last mask is gone. token_edit, insert_delete"},
    {"credit_alpha", DecodingKind::kNumber, 0, 10, kNoNames, "Weight of the credit. credit"},
    {"credit_gamma", DecodingKind::kNumber, 0, 10, kNoNames, "Power of the probability that is credited. credit"},
    {"credit_beta", DecodingKind::kNumber, 0, 1, kNoNames, "What is left of the credit a step later. credit"},
    {"kl_threshold", DecodingKind::kNumber, 0, 100, kNoNames, "Nats. klass"},
    {"verify_threshold", DecodingKind::kNumber, 0, 1, kNoNames, "Below it a token becomes a mask again. wino"},
    {"remasking_schedule", DecodingKind::kName, 0, 0, kRemaskingScheduleNames, "remdm"},
    {"remasking_eta", DecodingKind::kNumber, 0, 1, kNoNames, "remdm"},
    {"remasking_on", DecodingKind::kNumber, 0, 1, kNoNames, "Time at which the loop begins. remdm"},
    {"remasking_off", DecodingKind::kNumber, 0, 1, kNoNames, "Time at which it ends. remdm"},
    {"remasking_alpha", DecodingKind::kNumber, 0, 1, kNoNames, "What it holds alpha at. remdm"},
    {"block_add_threshold", DecodingKind::kNumber, 0, 1, kNoNames,
     "Written part of a block at which the next begins. multi_block"},
    {"initial_length", DecodingKind::kCount, 1, 65536, kNoNames, "Masks to begin with. variable_length"},
    {"expansion", DecodingKind::kCount, 1, 256, kNoNames, "Masks in place of one. variable_length"},
    {"eos_threshold", DecodingKind::kNumber, 0, 1, kNoNames,
     "Grows before decoding while the end is less certain. variable_length"},
    {"expand_eos_threshold", DecodingKind::kNumber, 0, 1, kNoNames, "The same while decoding. variable_length"},
    {"eos_window", DecodingKind::kCount, 1, 256, kNoNames,
     "Last positions that are asked for the end. variable_length"},
    {"sub_block_length", DecodingKind::kCount, 1, 65536, kNoNames, "Divides the block. sub_block"},
    {"vicinity_before", DecodingKind::kCount, 0, 4096, kNoNames,
     "Positions before the block that are computed anew. cache vicinity"},
    {"vicinity_after", DecodingKind::kCount, 0, 4096, kNoNames, "And behind it. cache vicinity"},
    {"vicinity_warmup", DecodingKind::kCount, 0, 4096, kNoNames, "Whole forwards at the beginning. cache vicinity"},
    {"stability_steps", DecodingKind::kCount, 0, 16, kNoNames, "renoise"},
    {"temperature_min", DecodingKind::kNumber, 0, 2, kNoNames, "renoise"},
    {"temperature_max", DecodingKind::kNumber, 0, 2, kNoNames, "renoise"},
};
inline constexpr size_t kDecodingFieldCount = std::size(kDecodingFields);

/// An index into kDecodingFields; a name that is not there does not compile.
struct DecodingIndex {
  constexpr explicit DecodingIndex(size_t at) : index(at) {}
  consteval DecodingIndex(const char* name) : index(0) {
    while (kDecodingFields[index].name != name) ++index;
  }
  size_t index;
};

/// How the canvas is to be filled. What is not set takes the model's default (the worker's decoding/ resolves it).
class DecodingChoice {
 public:
  std::optional<double> Get(DecodingIndex field) const { return values_[field.index]; }
  /// Requires: within the bounds. Names are their number from 1, flags 0 or 1.
  void Set(DecodingIndex field, double value) { values_[field.index] = value; }
  bool operator==(const DecodingChoice&) const = default;

 private:
  std::array<std::optional<double>, kDecodingFieldCount> values_;
};

/// Number of `name` among `names`, from 1; 0: it is none.
constexpr size_t NumberOf(std::span<const std::string_view> names, std::string_view name) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return i + 1;
  }
  return 0;
}

struct DecodingBounds {
  double min, max;
};

/// Of a number beside what is set already: thresholds are probabilities unless policy or confidence say otherwise. The
/// policy that a model or a profile defaults to is the worker's to know, and so is its bound.
inline DecodingBounds BoundsOf(DecodingIndex field, const DecodingChoice& choice) {
  const DecodingField& row = kDecodingFields[field.index];
  constexpr DecodingIndex threshold("threshold"), low("low_threshold");
  if (field.index != threshold.index && field.index != low.index) return {row.min, row.max};
  const std::optional<double> policy = choice.Get("policy");
  const bool nats = field.index == threshold.index && (!policy || policy == NumberOf(kPolicyNames, "multi_block") ||
                                                       policy == NumberOf(kPolicyNames, "renoise"));
  const bool negative = choice.Get("confidence") == NumberOf(kConfidenceNames, "entropy");
  if (negative) return {-kNatsMax, 0};
  return {0, nats ? kNatsMax : 1};
}

}  // namespace quicksilver
