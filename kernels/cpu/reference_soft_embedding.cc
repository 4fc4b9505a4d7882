#include <cmath>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/host_matrix.h"
#include "kernels/cpu/reference_ops.h"

namespace quicksilver {
namespace {

float Logit(const ConstMatrix& hidden, int64_t row, const ReferenceWeight& weight, int64_t o, float soft_cap) {
  float z = 0.0f;
  for (int64_t h = 0; h < hidden.cols; ++h) z += Load(hidden, row, h) * weight.at(o, h);
  return soft_cap > 0.0f ? soft_cap * std::tanh(z / soft_cap) : z;
}

float ShareOf(float z, int32_t id, const TemperedSoftmax& softmax) {
  if (!(softmax.temperature > 0.0f)) return id == softmax.best_id ? 1.0f : 0.0f;
  return std::exp(z / softmax.temperature - softmax.log_sum_exp);
}

}  // namespace

void ReferenceOps::SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table,
                             const VocabularyShard& shard, const SoftEmbedBatch& batch, Matrix out) {
  const auto& head = static_cast<const ReferenceWeight&>(weight);
  CHECK(hidden.cols == head.in_features() && table.cols == out.cols && out.rows == batch.count);
  for (int32_t i = 0; i < batch.count; ++i) {
    const int32_t row = batch.requests[i].row;
    const TemperedSoftmax softmax = TemperedSoftmaxOf(batch, i);
    std::vector<float> sums(static_cast<size_t>(out.cols));
    for (int64_t o = 0; row >= 0 && o < head.out_features() && o < table.rows; ++o) {
      const auto id = static_cast<int32_t>(shard.first_id + o);
      if (id >= shard.vocabulary) break;
      const float share = RoundTo(activation_, ShareOf(Logit(hidden, row, head, o, shard.soft_cap), id, softmax));
      for (int64_t h = 0; h < out.cols; ++h) sums[static_cast<size_t>(h)] += share * Load(table, o, h);
    }
    for (int64_t h = 0; h < out.cols; ++h) Store(out, i, h, sums[static_cast<size_t>(h)]);
  }
}

}  // namespace quicksilver
