#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/tensor.h"

namespace quicksilver {

/// A DiffusionGemma text model small enough to be computed from its definition: random weights, sliding and full layers
/// of different heads, a window shorter than a prompt.
struct TinyGemma {
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;
  };

  int64_t hidden = 32;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_size = 8;
  int64_t full_kv_heads = 1;
  int64_t full_head_size = 16;
  int64_t rotary_size = 8;  ///< Of a full layer.
  int64_t mlp = 24;
  int64_t experts = 4;
  int64_t chosen = 2;
  int64_t expert_mlp = 16;
  int64_t vocabulary = 60;
  int64_t window = 6;
  int64_t canvas = 8;
  float soft_cap = 5.0f;
  std::vector<uint8_t> full = {0, 0, 1, 0};  ///< By layer.
  std::map<std::string, Tensor> tensors;     ///< Without the prefix of the text model.

  explicit TinyGemma(uint32_t seed);

  const std::vector<float>& Of(const std::string& name) const { return tensors.at(name).values; }
  /// Writes a checkpoint whose text model is under `prefix`; f32. `more`: names of vectors to add.
  void Write(const std::string& directory, const std::string& prefix, const std::vector<std::string>& more = {}) const;
};

/// Rows of doubles.
using Doubles = std::vector<std::vector<double>>;

/// The model by its definition (models.md §8.4), in double: the committed tokens pass through it causally, then the
/// canvas in both directions, on the keys that the committed ones have left.
class GemmaReference {
 public:
  explicit GemmaReference(const TinyGemma& model) : model_(model) {}

  /// Capped logits of the canvas behind `committed`. soft: what the step before expected; empty: nothing yet.
  Doubles Logits(const std::vector<TokenId>& committed, const std::vector<TokenId>& canvas, const Doubles& soft) const;
  /// Capped logits of committed tokens.
  Doubles EncoderLogits(const std::vector<TokenId>& committed) const;
  /// What capped logits expect at a temperature.
  Doubles SoftEmbedding(const Doubles& logits, double temperature) const;

 private:
  struct Keys {
    std::vector<Doubles> keys;  // [heads][position][hd]
    std::vector<Doubles> values;
  };
  struct Pass {
    bool decoder = false;
    int64_t first_position = 0;
    std::vector<Keys>* cache = nullptr;  // By layer, of committed tokens.
  };

  Doubles Embed(const std::vector<TokenId>& ids) const;
  Doubles Condition(const Doubles& x, const Doubles& soft) const;
  Doubles RunLayers(Doubles h, const Pass& pass) const;
  Doubles Attention(int64_t layer, const Doubles& x, const Pass& pass) const;
  Doubles Experts(int64_t layer, const Doubles& h) const;
  Doubles Mlp(const std::string& prefix, const Doubles& x) const;
  Doubles Norm(const Doubles& x, const std::string& gain) const;
  Doubles Product(const Doubles& x, const float* weight, int64_t out) const;
  Doubles HeadOf(const Doubles& h) const;
  void Rotate(std::vector<double>& head, int64_t position, bool full) const;

  const TinyGemma& model_;
};

}  // namespace quicksilver
