#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace quicksilver {

// A network written once more, token by token and in double, from the model specification alone: neither specs nor
// tensor names nor operations are the program's.

/// Row-major [rows, cols].
struct PlainMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<float> values;
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

struct PlainMlp {
  PlainMatrix gate, up, down;
};

/// How experts are chosen and weighed (models.md §3.3, §4.4, §4.5, §5.3).
struct PlainRouting {
  int64_t experts = 0;
  int64_t chosen = 0;
  int64_t width = 0;
  int64_t shared_width = 0;
  int64_t dense_layers = 0;
  bool sigmoid = false;
  bool bias = false;
  bool weigh_biased = false;
  bool normalise = false;
  double scale = 1.0;
  int64_t groups = 1;
  int64_t groups_kept = 1;
  int64_t pooled = 0;  ///< Experts that a block admits; 0: all.
};

struct PlainSizes {
  int64_t hidden = 32;
  int64_t layers = 2;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_size = 8;
  int64_t mlp = 48;
  int64_t vocabulary = 40;
  int64_t rotated = 8;  ///< Of head_size.
  double theta = 10000.0;
  double epsilon = 1e-6;
  bool qkv_bias = false;
  bool head_norms = false;
  bool tied = false;
  int64_t block = 0;  ///< A token sees the blocks up to its own; 0: everything.
  PlainRouting routing;
};

struct PlainLayer {
  PlainMatrix attention_norm, q, k, v, q_bias, k_bias, v_bias, q_norm, k_norm, out, mlp_norm;
  PlainMlp mlp;  ///< Dense, or the shared expert.
  PlainMatrix router, expert_bias;
  std::vector<PlainMlp> experts;
};

struct PlainNetwork {
  PlainSizes sizes;
  PlainMatrix embedding, final_norm, head;
  std::vector<PlainLayer> layers;

  bool HasExperts(int64_t layer) const { return sizes.routing.experts > 0 && layer >= sizes.routing.dense_layers; }
};

PlainNetwork MakePlainNetwork(const PlainSizes& sizes, uint32_t seed);

/// Logits of every position: [ids, V].
std::vector<std::vector<double>> PlainLogits(const PlainNetwork& network, const std::vector<TokenId>& ids);

/// One tensor of a checkpoint.
struct StoredPlain {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

/// Which names a published checkpoint has for the parts.
enum class PlainNames {
  kQwen,           ///< models.md §2.2, §5.2, §6
  kLladaMoe,       ///< §3.2
  kLlada2,         ///< §4.2
  kLlada2Stacked,  ///< §4.2, the training format
};

/// The tensors of a checkpoint, all f32.
std::vector<StoredPlain> StoreNetwork(const PlainNetwork& network, PlainNames names);
/// The bytes of one model.safetensors.
std::string PlainSafetensors(const std::vector<StoredPlain>& tensors);

}  // namespace quicksilver
