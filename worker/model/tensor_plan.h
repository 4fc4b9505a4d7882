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

/// Rows of a stored tensor from `first_row` on; a tensor of three dimensions counts as its matrices, one below the
/// other.
struct TensorPart {
  std::string tensor;
  int64_t first_row = 0;
};

/// A gated MLP.
struct MlpParts {
  TensorPart gate;  ///< [I, H]
  TensorPart up;    ///< [I, H]
  TensorPart down;  ///< [H, I]
};

/// Where the tensors of one layer stand. Names that its family or the layer has not are empty.
struct LayerTensors {
  std::string attention_norm;
  TensorPart q, k, v;
  std::string q_bias, k_bias, v_bias;
  std::string q_norm, k_norm;
  std::string attention_out;
  std::string mlp_norm;
  MlpParts mlp;  ///< Of a dense layer, or the shared expert of a layer of experts.
  std::string router;
  std::string expert_bias;
};
LayerTensors TensorsOfLayer(const ModelSpec& spec, int64_t layer);

/// Where one expert of a layer stands.
MlpParts TensorsOfExpert(const ModelSpec& spec, int64_t layer, int64_t expert);

/// All tensors of a checkpoint of `spec`, in the order of the forward pass.
std::vector<ExpectedTensor> ExpectedTensors(const ModelSpec& spec);

/// InvalidArgument, one line naming file, tensor, expected and found, unless `checkpoint` holds exactly the tensors of
/// `spec` in their shapes, and matrices are of one dtype (vectors may be f32 in a narrower file). Tensors that the
/// published code ignores too (RoPE's inverse frequencies, the LM head of a tied model) may be there.
absl::Status CheckTensors(const ModelSpec& spec, const Checkpoint& checkpoint);

/// CheckTensors, and that `tensor_parallel_size` ranks can share the model (MakeShard in sharding.h).
absl::Status CheckCheckpoint(const ModelSpec& spec, const Checkpoint& checkpoint, int tensor_parallel_size);

}  // namespace quicksilver
