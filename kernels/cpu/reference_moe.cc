#include <cmath>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/host_matrix.h"
#include "kernels/cpu/host_routing.h"
#include "kernels/cpu/reference_ops.h"

namespace quicksilver {
namespace {

/// Row-major, as given, rounded to the activation type.
class ReferenceExperts final : public ExpertWeights {
 public:
  ReferenceExperts(const ExpertShape& shape, DType activation)
      : shape_(shape),
        activation_(activation),
        gate_up_(static_cast<size_t>(shape.count * 2 * shape.mlp * shape.hidden)),
        down_(static_cast<size_t>(shape.count * shape.hidden * shape.mlp)) {}

  const ExpertShape& shape() const override { return shape_; }
  size_t bytes() const override { return (gate_up_.size() + down_.size()) * sizeof(float); }
  absl::Status Load(int32_t expert, ExpertMatrix which, ConstMatrix host) override {
    CHECK(expert >= shape_.first && expert < shape_.first + shape_.count);
    CHECK(host.rows == rows(which) && host.cols == cols(which));
    for (int64_t o = 0; o < host.rows; ++o) {
      for (int64_t i = 0; i < host.cols; ++i)
        at(expert, which, o, i) = RoundTo(activation_, quicksilver::Load(host, o, i));
    }
    return absl::OkStatus();
  }

  /// sum over i of x[i] * matrix[o, i], rounded to the activation type.
  float Product(int32_t expert, ExpertMatrix which, int64_t o, const std::vector<float>& x) const {
    const float* const row = values(which).data() + Index(expert, which, o, 0);
    float sum = 0.0f;
    for (int64_t i = 0; i < cols(which); ++i) sum += x[static_cast<size_t>(i)] * row[i];
    return RoundTo(activation_, sum);
  }

 private:
  int64_t rows(ExpertMatrix which) const { return which == ExpertMatrix::kDown ? shape_.hidden : 2 * shape_.mlp; }
  int64_t cols(ExpertMatrix which) const { return which == ExpertMatrix::kDown ? shape_.mlp : shape_.hidden; }
  const std::vector<float>& values(ExpertMatrix which) const { return which == ExpertMatrix::kDown ? down_ : gate_up_; }
  size_t Index(int32_t expert, ExpertMatrix which, int64_t o, int64_t i) const {
    return static_cast<size_t>(((expert - shape_.first) * rows(which) + o) * cols(which) + i);
  }
  float& at(int32_t expert, ExpertMatrix which, int64_t o, int64_t i) {
    return (which == ExpertMatrix::kDown ? down_ : gate_up_)[Index(expert, which, o, i)];
  }

  ExpertShape shape_;
  DType activation_;
  std::vector<float> gate_up_;
  std::vector<float> down_;
};

float Activate(Activation activation, float x) {
  if (activation == Activation::kSilu) return x / (1.0f + std::exp(-x));
  const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + std::tanh(inner));
}

}  // namespace

void ReferenceOps::GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) {
  CHECK(gate_up.cols == 2 * out.cols && gate_up.rows == out.rows);
  for (int64_t n = 0; n < out.rows; ++n) {
    for (int64_t i = 0; i < out.cols; ++i) {
      Store(out, n, i, Activate(activation, Load(gate_up, n, i)) * Load(gate_up, n, out.cols + i));
    }
  }
}

void ReferenceOps::Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
                         float* weights) {
  RouteOnHost(layout, logits, rule, activation_, experts, weights);
}

absl::StatusOr<std::unique_ptr<ExpertWeights>> ReferenceOps::PrepareExperts(const ExpertShape& shape) {
  return std::make_unique<ReferenceExperts>(shape, activation_);
}

void ReferenceOps::ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                             const float* expert_weights, int32_t k, bool add, Matrix out) {
  const auto& held = static_cast<const ReferenceExperts&>(weights);
  const ExpertShape& shape = held.shape();
  CHECK(x.cols == shape.hidden && out.cols == shape.hidden && x.rows == out.rows);
  std::vector<float> row(static_cast<size_t>(x.cols)), inner(static_cast<size_t>(shape.mlp));
  for (int64_t n = 0; n < x.rows; ++n) {
    std::vector<float> sums(static_cast<size_t>(x.cols));
    for (int64_t h = 0; h < x.cols; ++h) row[static_cast<size_t>(h)] = Load(x, n, h);
    for (int64_t j = n * k; j < (n + 1) * k; ++j) {
      if (experts[j] < shape.first || experts[j] >= shape.first + shape.count) continue;
      for (int64_t i = 0; i < shape.mlp; ++i) {
        const float gate = held.Product(experts[j], ExpertMatrix::kGateUp, i, row);
        const float up = held.Product(experts[j], ExpertMatrix::kGateUp, shape.mlp + i, row);
        inner[static_cast<size_t>(i)] = RoundTo(activation_, Activate(activation, gate) * up);
      }
      for (int64_t h = 0; h < x.cols; ++h) {
        sums[static_cast<size_t>(h)] += expert_weights[j] * held.Product(experts[j], ExpertMatrix::kDown, h, inner);
      }
    }
    for (int64_t h = 0; h < x.cols; ++h) {
      const float sum = RoundTo(out.dtype, sums[static_cast<size_t>(h)]);
      Store(out, n, h, add ? Load(out, n, h) + sum : sum);
    }
  }
}

}  // namespace quicksilver
