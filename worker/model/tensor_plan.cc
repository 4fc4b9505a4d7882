#include "worker/model/tensor_plan.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/model/families/family.h"
#include "worker/model/gemma_tensors.h"
#include "worker/model/sharding.h"

namespace quicksilver {
namespace {

const Family& FamilyOf(const ModelSpec& spec) {
  const Family* family = FindFamily(spec.architecture);
  CHECK(family != nullptr);
  return *family;
}

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

bool IsIgnored(const ModelSpec& spec, const std::string& name) {
  if (spec.gemma.present() && IsIgnoredByGemma(spec, name)) return true;
  return absl::EndsWith(name, "rotary_emb.inv_freq") || (spec.tied && name == FamilyOf(spec).tensors.lm_head);
}

absl::Status CheckTensor(const ExpectedTensor& expected, StoredType dtype, const Checkpoint& checkpoint) {
  const StoredTensor* found = checkpoint.Find(expected.name);
  if (found == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.directory(), ": tensor '", expected.name, "': expected ",
                                                   StoredTypeName(dtype), " ", ShapeText(expected.shape),
                                                   ", found none"));
  }
  const bool dtype_fits = found->type == dtype || (expected.shape.size() == 1 && found->type == StoredType::kF32);
  if (found->shape == expected.shape && dtype_fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(found->file, ": tensor '", expected.name, "': expected ",
                                                 StoredTypeName(dtype), " ", ShapeText(expected.shape), ", found ",
                                                 StoredTypeName(found->type), " ", ShapeText(found->shape)));
}

}  // namespace

LayerTensors TensorsOfLayer(const ModelSpec& spec, int64_t layer) {
  const TensorNames& names = FamilyOf(spec).tensors;
  const auto full = [&](const char* name) { return absl::StrCat(names.layer_prefix, layer, ".", name); };
  LayerTensors tensors;
  tensors.attention_norm = full(names.attention_norm);
  if (names.qkv != nullptr) {
    const int64_t query_width = spec.heads * spec.head_size, kv_width = spec.kv_heads * spec.head_size;
    tensors.q = {full(names.qkv), 0};
    tensors.k = {tensors.q.tensor, query_width};
    tensors.v = {tensors.q.tensor, query_width + kv_width};
  } else {
    tensors.q = {full(names.q)};
    tensors.k = {full(names.k)};
    tensors.v = {full(names.v)};
  }
  if (spec.qkv_bias) {
    tensors.q_bias = full(names.q_bias);
    tensors.k_bias = full(names.k_bias);
    tensors.v_bias = full(names.v_bias);
  }
  if (spec.head_norms) {
    tensors.q_norm = full(names.q_norm);
    tensors.k_norm = full(names.k_norm);
  }
  tensors.attention_out = full(names.attention_out);
  tensors.mlp_norm = full(names.mlp_norm);
  if (!HasExperts(spec, layer)) {
    tensors.mlp = {{full(names.gate)}, {full(names.up)}, {full(names.down)}};
    return tensors;
  }
  tensors.router = full(names.router);
  if (spec.moe.expert_bias) tensors.expert_bias = full(names.expert_bias);
  if (spec.moe.shared_mlp > 0) {
    tensors.mlp = {{full(names.shared_gate)}, {full(names.shared_up)}, {full(names.shared_down)}};
  }
  return tensors;
}

MlpParts TensorsOfExpert(const ModelSpec& spec, int64_t layer, int64_t expert) {
  const TensorNames& names = FamilyOf(spec).tensors;
  const std::string prefix = absl::StrCat(names.layer_prefix, layer, ".");
  if (spec.moe.stacked) {
    return {{prefix + names.stacked_gate, expert * spec.moe.mlp},
            {prefix + names.stacked_up, expert * spec.moe.mlp},
            {prefix + names.stacked_down, expert * spec.hidden}};
  }
  const std::string of_expert = absl::StrCat(prefix, names.expert_prefix, expert, ".");
  return {{of_expert + names.expert_gate}, {of_expert + names.expert_up}, {of_expert + names.expert_down}};
}

namespace {

void AppendMlp(const MlpParts& parts, int64_t width, const ModelSpec& spec, std::vector<ExpectedTensor>& tensors) {
  tensors.push_back({parts.gate.tensor, {width, spec.hidden}});
  tensors.push_back({parts.up.tensor, {width, spec.hidden}});
  tensors.push_back({parts.down.tensor, {spec.hidden, width}});
}

void AppendExperts(const ModelSpec& spec, int64_t layer, std::vector<ExpectedTensor>& tensors) {
  const MoeSpec& moe = spec.moe;
  if (moe.stacked) {
    const MlpParts parts = TensorsOfExpert(spec, layer, 0);
    tensors.push_back({parts.gate.tensor, {moe.experts, moe.mlp, spec.hidden}});
    tensors.push_back({parts.up.tensor, {moe.experts, moe.mlp, spec.hidden}});
    tensors.push_back({parts.down.tensor, {moe.experts, spec.hidden, moe.mlp}});
    return;
  }
  for (int64_t expert = 0; expert < moe.experts; ++expert) {
    AppendMlp(TensorsOfExpert(spec, layer, expert), moe.mlp, spec, tensors);
  }
}

void AppendAttention(const ModelSpec& spec, const LayerTensors& layer, std::vector<ExpectedTensor>& tensors) {
  const int64_t query_width = spec.heads * spec.head_size;
  const int64_t kv_width = spec.kv_heads * spec.head_size;
  if (layer.q.tensor == layer.k.tensor) {
    tensors.push_back({layer.q.tensor, {query_width + 2 * kv_width, spec.hidden}});
  } else {
    tensors.push_back({layer.q.tensor, {query_width, spec.hidden}});
    tensors.push_back({layer.k.tensor, {kv_width, spec.hidden}});
    tensors.push_back({layer.v.tensor, {kv_width, spec.hidden}});
  }
  if (spec.qkv_bias) {
    tensors.push_back({layer.q_bias, {query_width}});
    tensors.push_back({layer.k_bias, {kv_width}});
    tensors.push_back({layer.v_bias, {kv_width}});
  }
  if (spec.head_norms) {
    tensors.push_back({layer.q_norm, {spec.head_size}});
    tensors.push_back({layer.k_norm, {spec.head_size}});
  }
  tensors.push_back({layer.attention_out, {spec.hidden, query_width}});
}

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec) {
  if (spec.gemma.present()) return GemmaExpectedTensors(spec);
  const TensorNames& names = FamilyOf(spec).tensors;
  std::vector<ExpectedTensor> tensors = {{names.embedding, {spec.vocabulary, spec.hidden}}};
  for (int64_t i = 0; i < spec.layers; ++i) {
    const LayerTensors layer = TensorsOfLayer(spec, i);
    tensors.push_back({layer.attention_norm, {spec.hidden}});
    AppendAttention(spec, layer, tensors);
    tensors.push_back({layer.mlp_norm, {spec.hidden}});
    if (!HasExperts(spec, i)) {
      AppendMlp(layer.mlp, spec.mlp, spec, tensors);
      continue;
    }
    tensors.push_back({layer.router, {spec.moe.experts, spec.hidden}});
    if (spec.moe.expert_bias) tensors.push_back({layer.expert_bias, {spec.moe.experts}});
    if (spec.moe.shared_mlp > 0) AppendMlp(layer.mlp, spec.moe.shared_mlp, spec, tensors);
    AppendExperts(spec, i, tensors);
  }
  tensors.push_back({names.final_norm, {spec.hidden}});
  if (!spec.tied) tensors.push_back({names.lm_head, {spec.vocabulary, spec.hidden}});
  return tensors;
}

absl::Status CheckTensors(const ModelSpec& spec, const Checkpoint& checkpoint) {
  const std::vector<ExpectedTensor> expected = ExpectedTensors(spec);
  const StoredTensor* embedding = checkpoint.Find(expected.front().name);
  const StoredType dtype = embedding != nullptr ? embedding->type : StoredType::kF32;
  std::vector<std::string> names;
  for (const ExpectedTensor& tensor : expected) {
    RETURN_IF_ERROR(CheckTensor(tensor, dtype, checkpoint));
    names.push_back(tensor.name);
  }
  std::sort(names.begin(), names.end());
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (std::binary_search(names.begin(), names.end(), tensor.name) || IsIgnored(spec, tensor.name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(tensor.file, ": tensor '", PrintableName(tensor.name),
                                                   "': expected no such tensor in ", spec.architecture, ", found ",
                                                   StoredTypeName(tensor.type), " ", ShapeText(tensor.shape)));
  }
  return absl::OkStatus();
}

absl::Status CheckCheckpoint(const ModelSpec& spec, const Checkpoint& checkpoint, int tensor_parallel_size) {
  RETURN_IF_ERROR(MakeShard(spec, 0, tensor_parallel_size).status());
  return CheckTensors(spec, checkpoint);
}

}  // namespace quicksilver
