#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

class ConfigFields;

/// What a family calls its tensors. Names of a layer follow `layer_prefix` + the layer's number + ".".
struct TensorNames {
  const char* embedding;
  const char* layer_prefix;
  const char* attention_norm;
  const char* q;
  const char* k;
  const char* v;
  const char* q_norm;  ///< Of families with head_norms; else nullptr, as k_norm.
  const char* k_norm;
  const char* attention_out;
  const char* mlp_norm;
  const char* gate;
  const char* up;
  const char* down;
  const char* final_norm;
  const char* lm_head;
};

/// One model family: data, and the reading of its config.json.
struct Family {
  const char* name;
  const char* architecture;  ///< config.json architectures[0]
  const char* tied_field;    ///< Of config.json; where it is absent, a missing LM head says that it is tied.
  TensorNames tensors;

  // Special tokens, looked up in this order: config.json and generation_config.json, the tokenizer by content, and for
  // the published vocabulary by id.
  const char* mask_token;
  std::vector<const char*> stop_tokens;
  int64_t published_vocabulary;
  TokenId published_mask_id;
  std::vector<TokenId> published_stop_ids;

  /// Fills in everything of the spec that config.json alone decides.
  absl::Status (*read_config)(const ConfigFields& config, ModelSpec& spec);
};

/// All families that can be served.
const std::vector<Family>& Families();

/// nullptr: none of that architecture.
const Family* FindFamily(const std::string& architecture);

const Family& SdarFamily();
const Family& LladaFamily();

// Bounds of what config.json may ask for, far above any model, so that products of sizes fit 64 bits.
inline constexpr int64_t kWidthMax = 1 << 20;
inline constexpr int64_t kLayersMax = 1 << 10;
inline constexpr int64_t kHeadsMax = 1 << 12;
inline constexpr int64_t kHeadSizeMax = 1 << 10;
inline constexpr int64_t kVocabularyMax = 1 << 24;
inline constexpr int64_t kPositionsMax = 1 << 24;
inline constexpr int64_t kBlockMax = 256;

}  // namespace quicksilver
