#include "worker/model/gemma_tensors.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

constexpr char kDecoder[] = "model.decoder.";
constexpr char kEncoder[] = "model.encoder.language_model.";
constexpr char kConditioning[] = "model.decoder.self_conditioning.";
constexpr const char* kVision[] = {"model.encoder.vision_tower.", "model.encoder.embed_vision."};

void AppendLayer(const ModelSpec& spec, int64_t index, std::vector<ExpectedTensor>& tensors) {
  const GemmaLayerTensors layer = GemmaTensorsOfLayer(spec, index);
  const MoeSpec& moe = spec.moe;
  const bool full = spec.gemma.full[static_cast<size_t>(index)] != 0;
  const int64_t H = spec.hidden, hd = full ? spec.gemma.head_size : spec.head_size;
  const int64_t query_width = spec.heads * hd, kv_width = (full ? spec.gemma.kv_heads : spec.kv_heads) * hd;
  tensors.push_back({layer.attention_norm, {H}});
  tensors.push_back({layer.q, {query_width, H}});
  tensors.push_back({layer.k, {kv_width, H}});
  if (!full) tensors.push_back({layer.v, {kv_width, H}});
  tensors.push_back({layer.q_norm, {hd}});
  tensors.push_back({layer.k_norm, {hd}});
  tensors.push_back({layer.out, {H, query_width}});
  tensors.push_back({layer.post_attention_norm, {H}});
  tensors.push_back({layer.mlp_norm, {H}});
  tensors.push_back({layer.gate, {moe.shared_mlp, H}});
  tensors.push_back({layer.up, {moe.shared_mlp, H}});
  tensors.push_back({layer.down, {H, moe.shared_mlp}});
  tensors.push_back({layer.post_mlp_norm, {H}});
  tensors.push_back({layer.router_scale, {H}});
  tensors.push_back({layer.router, {moe.experts, H}});
  tensors.push_back({layer.expert_scale, {moe.experts}});
  tensors.push_back({layer.expert_norm, {H}});
  tensors.push_back({layer.expert_gate_up, {moe.experts, 2 * moe.mlp, H}});
  tensors.push_back({layer.expert_down, {moe.experts, H, moe.mlp}});
  tensors.push_back({layer.post_expert_norm, {H}});
  tensors.push_back({layer.post_norm, {H}});
  tensors.push_back({layer.layer_scale, {1}});
}

}  // namespace

GemmaLayerTensors GemmaTensorsOfLayer(const ModelSpec& spec, int64_t layer) {
  const auto full = [&](const char* name) { return absl::StrCat(spec.gemma.prefix, "layers.", layer, ".", name); };
  GemmaLayerTensors t;
  t.attention_norm = full("input_layernorm.weight");
  t.q = full("self_attn.q_proj.weight");
  t.k = full("self_attn.k_proj.weight");
  t.v = spec.gemma.full[static_cast<size_t>(layer)] != 0 ? t.k : full("self_attn.v_proj.weight");
  t.out = full("self_attn.o_proj.weight");
  t.q_norm = full("self_attn.q_norm.weight");
  t.k_norm = full("self_attn.k_norm.weight");
  t.post_attention_norm = full("post_attention_layernorm.weight");
  t.mlp_norm = full("pre_feedforward_layernorm.weight");
  t.gate = full("mlp.gate_proj.weight");
  t.up = full("mlp.up_proj.weight");
  t.down = full("mlp.down_proj.weight");
  t.post_mlp_norm = full("post_feedforward_layernorm_1.weight");
  t.expert_norm = full("pre_feedforward_layernorm_2.weight");
  t.expert_gate_up = full("experts.gate_up_proj");
  t.expert_down = full("experts.down_proj");
  t.post_expert_norm = full("post_feedforward_layernorm_2.weight");
  t.router = full("router.proj.weight");
  t.router_scale = full("router.scale");
  t.expert_scale = full("router.per_expert_scale");
  t.post_norm = full("post_feedforward_layernorm.weight");
  t.layer_scale = full("layer_scalar");
  return t;
}

GemmaConditioningTensors GemmaTensorsOfConditioning() {
  const auto full = [](const char* name) { return absl::StrCat(kConditioning, name); };
  return {full("pre_norm.weight"), full("gate_proj.weight"), full("up_proj.weight"), full("down_proj.weight")};
}

std::vector<ExpectedTensor> GemmaExpectedTensors(const ModelSpec& spec) {
  const int64_t H = spec.hidden, I = spec.moe.shared_mlp;
  std::vector<ExpectedTensor> tensors = {{spec.gemma.prefix + "embed_tokens.weight", {spec.vocabulary, H}}};
  const GemmaConditioningTensors conditioning = GemmaTensorsOfConditioning();
  tensors.push_back({conditioning.norm, {H}});
  tensors.push_back({conditioning.gate, {I, H}});
  tensors.push_back({conditioning.up, {I, H}});
  tensors.push_back({conditioning.down, {H, I}});
  for (int64_t i = 0; i < spec.layers; ++i) AppendLayer(spec, i, tensors);
  tensors.push_back({spec.gemma.prefix + "norm.weight", {H}});
  return tensors;
}

absl::Status ReadGemmaPrefix(const Checkpoint& checkpoint, ModelSpec& spec) {
  for (const char* prefix : {kDecoder, kEncoder}) {
    if (checkpoint.Find(absl::StrCat(prefix, "embed_tokens.weight")) == nullptr) continue;
    spec.gemma.prefix = prefix;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.directory(), ": tensor '", kDecoder,
                                                 "embed_tokens.weight': expected in the checkpoint, there or under ",
                                                 kEncoder, ", found neither"));
}

bool IsIgnoredByGemma(const ModelSpec& spec, const std::string& name) {
  for (const char* vision : kVision) {
    if (absl::StartsWith(name, vision)) return true;
  }
  if (absl::StartsWith(name, kConditioning)) return false;
  return absl::StartsWith(name, spec.gemma.prefix == kDecoder ? kEncoder : kDecoder);
}

}  // namespace quicksilver
