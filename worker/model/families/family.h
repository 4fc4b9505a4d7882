#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

class Checkpoint;
class ConfigFields;

/// What a family calls its tensors; nullptr: it has none of that kind. Names of a layer follow `layer_prefix` + the
/// layer's number + ".".
struct TensorNames {
  const char* embedding = nullptr;
  const char* layer_prefix = nullptr;
  const char* attention_norm = nullptr;
  const char* qkv = nullptr;  ///< One matrix of all query, key and value rows, in place of the next three.
  const char* q = nullptr;
  const char* k = nullptr;
  const char* v = nullptr;
  const char* q_bias = nullptr;  ///< Of families with qkv_bias, as the next two.
  const char* k_bias = nullptr;
  const char* v_bias = nullptr;
  const char* q_norm = nullptr;  ///< Of families with head_norms, as k_norm.
  const char* k_norm = nullptr;
  const char* attention_out = nullptr;
  const char* mlp_norm = nullptr;
  const char* gate = nullptr;  ///< Of a dense layer, as the next two.
  const char* up = nullptr;
  const char* down = nullptr;
  const char* router = nullptr;  ///< Of a layer of experts, as all that follow.
  const char* expert_bias = nullptr;
  const char* expert_prefix = nullptr;  ///< Followed by the expert's number, "." and …
  const char* expert_gate = nullptr;    ///< … these.
  const char* expert_up = nullptr;
  const char* expert_down = nullptr;
  const char* stacked_gate = nullptr;  ///< [E, Im, H], instead of tensors an expert.
  const char* stacked_up = nullptr;    ///< [E, Im, H]
  const char* stacked_down = nullptr;  ///< [E, H, Im]
  const char* shared_gate = nullptr;
  const char* shared_up = nullptr;
  const char* shared_down = nullptr;
  const char* final_norm = nullptr;
  const char* lm_head = nullptr;
};

/// One model family, of one architecture: data, and the reading of its config.json.
struct Family {
  const char* name;
  const char* architecture;  ///< config.json architectures[0]
  const char* tied_field;    ///< Of config.json; where it is absent, a missing LM head says that it is tied. nullptr:
                             ///< read_config says it.
  TensorNames tensors;

  // Special tokens, looked up in this order: config.json and generation_config.json, the tokenizer by content, and for
  // a published vocabulary by id.
  const char* mask_token;  ///< nullptr: the family has no mask.
  std::vector<const char*> stop_tokens;
  std::vector<int64_t> published_vocabularies;
  TokenId published_mask_id = -1;
  std::vector<TokenId> published_stop_ids;

  /// Fills in everything of the spec that config.json alone decides.
  absl::Status (*read_config)(const ConfigFields& config, ModelSpec& spec);
  /// The same of what the names in the checkpoint's header tell; nullptr: nothing.
  absl::Status (*read_names)(const Checkpoint& checkpoint, ModelSpec& spec) = nullptr;
};

/// All families that can be served: those of every file NAME.cc of families/, which defines
///
///   std::vector<Family> NameFamilies();
///
/// The build finds the files (cmake/families.cmake).
const std::vector<Family>& Families();

/// nullptr: none of that architecture.
const Family* FindFamily(const std::string& architecture);

// Bounds of what config.json may ask for, far above any model, so that products of sizes fit 64 bits.
inline constexpr int64_t kWidthMax = 1 << 20;
inline constexpr int64_t kLayersMax = 1 << 10;
inline constexpr int64_t kHeadsMax = 1 << 12;
inline constexpr int64_t kHeadSizeMax = 1 << 10;
inline constexpr int64_t kVocabularyMax = 1 << 24;
inline constexpr int64_t kPositionsMax = 1 << 24;
inline constexpr int64_t kBlockMax = 256;

}  // namespace quicksilver
