#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/model/model_spec.h"

namespace quicksilver {

/// A tensor that a checkpoint of some spec has to hold.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};

/// Full names of the tensors of one layer. The norms of the heads are empty without head_norms.
struct LayerTensorNames {
  std::string attention_norm, q, k, v, q_norm, k_norm, attention_out, mlp_norm, gate, up, down;
};
LayerTensorNames NamesOfLayer(const ModelSpec& spec, int64_t layer);

/// All tensors of a checkpoint of `spec`, in the order of the forward pass.
std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec);

/// InvalidArgument, one line naming file, tensor, expected and found, unless `checkpoint` holds exactly the tensors of
/// `spec` in their shapes, and matrices are of one dtype (vectors may be f32 in a narrower file). Tensors that the
/// published code ignores too (RoPE's inverse frequencies, the LM head of a tied model) may be there.
absl::Status CheckTensors(const ModelSpec& spec, const Checkpoint& checkpoint);

/// CheckTensors, and that `tensor_parallel_size` ranks can share the model (MakeShard in sharding.h).
absl::Status CheckCheckpoint(const ModelSpec& spec, const Checkpoint& checkpoint, int tensor_parallel_size);

}  // namespace quicksilver
