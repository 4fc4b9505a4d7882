#include "worker/model/tensor_plan.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/model/families/family.h"
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

LayerTensorNames NamesOfLayer(const ModelSpec& spec, int64_t layer) {
  const TensorNames& names = FamilyOf(spec).tensors;
  const auto full = [&](const char* name) { return absl::StrCat(names.layer_prefix, layer, ".", name); };
  LayerTensorNames of_layer{.attention_norm = full(names.attention_norm),
                            .q = full(names.q),
                            .k = full(names.k),
                            .v = full(names.v),
                            .attention_out = full(names.attention_out),
                            .mlp_norm = full(names.mlp_norm),
                            .gate = full(names.gate),
                            .up = full(names.up),
                            .down = full(names.down)};
  if (spec.head_norms) {
    of_layer.q_norm = full(names.q_norm);
    of_layer.k_norm = full(names.k_norm);
  }
  return of_layer;
}

std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec) {
  const TensorNames& names = FamilyOf(spec).tensors;
  const int64_t query_width = spec.heads * spec.head_size;
  const int64_t kv_width = spec.kv_heads * spec.head_size;
  std::vector<ExpectedTensor> tensors = {{names.embedding, {spec.vocabulary, spec.hidden}}};
  for (int64_t i = 0; i < spec.layers; ++i) {
    const LayerTensorNames layer = NamesOfLayer(spec, i);
    tensors.push_back({layer.attention_norm, {spec.hidden}});
    tensors.push_back({layer.q, {query_width, spec.hidden}});
    tensors.push_back({layer.k, {kv_width, spec.hidden}});
    tensors.push_back({layer.v, {kv_width, spec.hidden}});
    if (spec.head_norms) {
      tensors.push_back({layer.q_norm, {spec.head_size}});
      tensors.push_back({layer.k_norm, {spec.head_size}});
    }
    tensors.push_back({layer.attention_out, {spec.hidden, query_width}});
    tensors.push_back({layer.mlp_norm, {spec.hidden}});
    tensors.push_back({layer.gate, {spec.mlp, spec.hidden}});
    tensors.push_back({layer.up, {spec.mlp, spec.hidden}});
    tensors.push_back({layer.down, {spec.hidden, spec.mlp}});
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
