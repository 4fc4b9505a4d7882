#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace quicksilver {

/// Where a family counts blocks from.
enum class BlockGrid {
  kAbsolute,     ///< Position 0; keys of later blocks are invisible (block-causal mask, exact KV cache).
  kAfterPrompt,  ///< The end of the prompt; every key is visible (bidirectional mask, no exact cache).
  kCanvas,       ///< The end of the prompt; committed tokens are causal, a canvas sees them all and itself.
};

/// A mixture of experts (models.md §3, §4, §5, §8).
struct MoeSpec {
  int64_t experts = 0;           ///< E; 0: every layer is dense.
  int64_t mlp = 0;               ///< Im of one expert.
  int64_t shared_mlp = 0;        ///< Width of the shared expert; 0: none.
  int64_t first_layer = 0;       ///< Layers before it are dense.
  RoutingRule routing;           ///< Without pointers.
  bool expert_bias = false;      ///< Chosen by biased scores.
  bool float_router = false;     ///< The router's product takes f32 operands and is not rounded.
  bool stacked = false;          ///< The checkpoint holds the experts of a layer in three stacked tensors.
  bool expert_parallel = false;  ///< A rank holds E / tp whole experts instead of Im / tp columns of each.
};

/// What DiffusionGemma's network has besides (models.md §8). Its fields of the same names in ModelSpec are those of
/// sliding layers; its dense MLPs count as shared experts.
struct GemmaSpec {
  std::vector<uint8_t> full;  ///< [layers] 1: attends to all keys, 0: through the window. Empty: another family.
  int32_t window = 0;         ///< Of a sliding layer.
  int64_t kv_heads = 0;       ///< Of a full layer, whose values are made of its keys' projection.
  int64_t head_size = 0;      ///< Of a full layer.
  double rope_theta = 0.0;    ///< Of a full layer, in proportion.
  int64_t rotary_size = 0;    ///< Of a full layer.
  float soft_cap = 0.0f;      ///< Of the logits.
  std::string prefix;         ///< Of the text model's tensors in the checkpoint.

  bool present() const { return !full.empty(); }
};

/// Everything about a network that is data: read from config.json by families/, checked against the checkpoint's
/// header, read by transformer.cc and the engine. Shape letters as in the model specification.
struct ModelSpec {
  std::string architecture;  ///< config.json architectures[0]
  std::string family;      ///< "sdar", "llada", "dream", "llada_moe", "llada2", "fast_dllm", "diffusion_gemma", "qwen"
  int64_t hidden = 0;      ///< H
  int64_t layers = 0;      ///< L
  int64_t heads = 0;       ///< nh
  int64_t kv_heads = 0;    ///< nkv
  int64_t head_size = 0;   ///< hd
  int64_t mlp = 0;         ///< I of the dense layers; 0: there are none.
  int64_t vocabulary = 0;  ///< V, rows of the embedding
  int64_t tokens = 0;      ///< Ids below it are real; rows of the embedding from it on are padding and count as -inf.
  int64_t positions_max = 0;
  float norm_epsilon = 0.0f;
  double rope_theta = 0.0;
  bool rope_full_precision = false;
  int64_t rotary_size = 0;  ///< Leading dimensions of a head that are rotated; 0: all.
  bool head_norms = false;  ///< RMSNorm on every q and k head before RoPE.
  bool qkv_bias = false;
  bool tied = false;                     ///< The LM head is the embedding.
  DType checkpoint_dtype = DType::kF32;  ///< Of its matrices; f16 is widened to f32 when it is read.

  MoeSpec moe;
  GemmaSpec gemma;

  BlockGrid grid = BlockGrid::kAbsolute;
  int32_t block_length = 0;  ///< B of the mask for kAbsolute; the default block of the answer for kAfterPrompt.
  bool shift = false;        ///< Row p - 1 predicts position p (row 0 for p = 0).
  TokenId mask_id = -1;      ///< -1: the family has none (autoregressive, uniform noise).
  TokenId delete_id = -1;    ///< LLaDA2.2's control tokens, or -1.
  TokenId insert_id = -1;
  std::vector<TokenId> stop_ids;  ///< Ascending, without repeats.
  TokenId eos_id = -1;            ///< The one of them that config.json names first, else the smallest; -1: none.
};

}  // namespace quicksilver
