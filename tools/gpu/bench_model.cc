#include "tools/gpu/bench_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/philox.h"
#include "common/status_macros.h"
#include "kernels/host_float.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

ModelSpec LladaSpec() {
  ModelSpec spec;
  spec.architecture = "LLaDAModelLM";
  spec.family = "llada";
  spec.hidden = 4096;
  spec.layers = 32;
  spec.heads = spec.kv_heads = 32;
  spec.head_size = 128;
  spec.mlp = 12288;
  spec.vocabulary = 126464;
  spec.positions_max = 4096;
  spec.norm_epsilon = 1e-5f;
  spec.rope_theta = 500000.0;
  spec.rope_full_precision = true;
  spec.block_length = 32;
  spec.mask_id = 126336;
  return spec;
}

ModelSpec SdarSpec(int64_t hidden, int64_t layers, int64_t heads, int64_t mlp, bool tied) {
  ModelSpec spec;
  spec.architecture = "SDARForCausalLM";
  spec.family = "sdar";
  spec.hidden = hidden;
  spec.layers = layers;
  spec.heads = heads;
  spec.kv_heads = 8;
  spec.head_size = 128;
  spec.mlp = mlp;
  spec.vocabulary = 151936;
  spec.positions_max = 32768;
  spec.norm_epsilon = 1e-6f;
  spec.rope_theta = 1000000.0;
  spec.head_norms = true;
  spec.tied = tied;
  spec.block_length = 4;
  spec.mask_id = 151669;
  return spec;
}

ModelSpec ToySpec() {
  ModelSpec spec = SdarSpec(/*hidden=*/128, /*layers=*/2, /*heads=*/4, /*mlp=*/256, /*tied=*/false);
  spec.kv_heads = 2;
  spec.head_size = 64;
  spec.vocabulary = 512;
  spec.mask_id = 511;
  return spec;
}

/// Tensors are windows into one pool of numbers, which repeats after a prime number of them: so no two rows of a
/// matrix begin at the same place.
class RandomWeights final : public Checkpoint {
 public:
  explicit RandomWeights(const ModelSpec& spec) {
    for (const ExpectedTensor& expected : ExpectedTensors(spec)) {
      StoredTensor tensor;
      tensor.name = expected.name;
      tensor.file = "random weights";
      tensor.shape = expected.shape;
      tensor.bytes = sizeof(uint16_t);
      for (const int64_t dimension : expected.shape) tensor.bytes *= static_cast<uint64_t>(dimension);
      tensor.type = StoredType::kBf16;
      tensors_.push_back(std::move(tensor));
    }
    std::sort(tensors_.begin(), tensors_.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
    FillPool(1.0f / std::sqrt(static_cast<float>(spec.hidden)));
  }

  const std::string& directory() const override { return directory_; }
  const std::string& config_text() const override { return config_; }
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }

  const StoredTensor* Find(const std::string& name) const override {
    const auto found =
        std::lower_bound(tensors_.begin(), tensors_.end(), name,
                         [](const StoredTensor& tensor, const std::string& n) { return tensor.name < n; });
    return found != tensors_.end() && found->name == name ? &*found : nullptr;
  }

  absl::Status Read(const StoredTensor& tensor, uint64_t offset, size_t bytes, void* out) const override {
    CHECK(offset % sizeof(uint16_t) == 0 && bytes % sizeof(uint16_t) == 0 && offset + bytes <= tensor.bytes);
    char* to = static_cast<char*>(out);
    if (tensor.shape.size() == 1) {
      const uint16_t one = FloatToBf16(1.0f);
      for (size_t i = 0; i < bytes; i += sizeof(one)) std::memcpy(to + i, &one, sizeof(one));
      return absl::OkStatus();
    }
    const size_t pool_bytes = pool_.size() * sizeof(uint16_t);
    size_t at = (std::hash<std::string>()(tensor.name) % pool_.size() * sizeof(uint16_t) + offset) % pool_bytes;
    while (bytes > 0) {
      const size_t run = std::min(bytes, pool_bytes - at);
      std::memcpy(to, reinterpret_cast<const char*>(pool_.data()) + at, run);
      to += run;
      bytes -= run;
      at = 0;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Digest(bool /*whole*/) const override { return std::string("random weights"); }

 private:
  void FillPool(float deviation) {
    constexpr size_t kNumbers = 8388593;              // The largest prime below 2^23.
    constexpr float kVarianceOfFourBytes = 21845.0f;  // 4 (256^2 - 1) / 12
    const float scale = deviation / std::sqrt(kVarianceOfFourBytes);
    pool_.resize(kNumbers);
    for (size_t i = 0; i < kNumbers; i += 4) {
      const PhiloxWords words = Philox(/*key=*/1, static_cast<uint32_t>(i), 0, 0, 0);
      for (size_t j = 0; j < 4 && i + j < kNumbers; ++j) {
        const uint32_t w = words.w[j];
        const auto sum = static_cast<float>((w & 255) + (w >> 8 & 255) + (w >> 16 & 255) + (w >> 24));
        pool_[i + j] = FloatToBf16((sum - 510.0f) * scale);
      }
    }
  }

  const std::string directory_ = "random weights";
  const std::string config_;
  std::vector<StoredTensor> tensors_;  // By name.
  std::vector<uint16_t> pool_;
};

}  // namespace

absl::StatusOr<ModelSpec> PublishedSpec(const std::string& model) {
  ModelSpec spec;
  if (model == "llada-8b") {
    spec = LladaSpec();
  } else if (model == "sdar-1.7b") {
    spec = SdarSpec(/*hidden=*/2048, /*layers=*/28, /*heads=*/16, /*mlp=*/6144, /*tied=*/true);
  } else if (model == "sdar-8b") {
    spec = SdarSpec(/*hidden=*/4096, /*layers=*/36, /*heads=*/32, /*mlp=*/12288, /*tied=*/false);
  } else if (model == "toy") {
    spec = ToySpec();
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("model: expected llada-8b, sdar-1.7b, sdar-8b or toy, found ", model));
  }
  spec.tokens = spec.vocabulary;
  spec.checkpoint_dtype = DType::kBf16;
  return spec;
}

std::unique_ptr<Checkpoint> MakeRandomWeights(const ModelSpec& spec) { return std::make_unique<RandomWeights>(spec); }

absl::StatusOr<std::vector<uint16_t>> RandomNumbers(int64_t rows, int64_t cols) {
  ASSIGN_OR_RETURN(ModelSpec spec, PublishedSpec("toy"));
  spec.vocabulary = spec.tokens = rows;
  spec.hidden = cols;
  const std::unique_ptr<Checkpoint> weights = MakeRandomWeights(spec);
  const StoredTensor* const head = weights->Find(ExpectedTensors(spec).back().name);
  std::vector<uint16_t> numbers(static_cast<size_t>(rows * cols));
  RETURN_IF_ERROR(weights->Read(*head, 0, head->bytes, numbers.data()));
  return numbers;
}

}  // namespace quicksilver
