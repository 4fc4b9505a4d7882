#include "kernels/cpu/reference_ops.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/host_matrix.h"

namespace quicksilver {
namespace {

bool SameShape(const ConstMatrix& a, const ConstMatrix& b) { return a.rows == b.rows && a.cols == b.cols; }

/// x[n, first + h] times this is normalised, for h < size.
float NormScale(const ConstMatrix& x, int64_t n, int64_t first, int64_t size, float epsilon) {
  float sum_squares = 0.0f;
  for (int64_t h = 0; h < size; ++h) sum_squares += Load(x, n, first + h) * Load(x, n, first + h);
  return 1.0f / std::sqrt(sum_squares / static_cast<float>(size) + epsilon);
}

float Gained(float normalised, NormGain gain, int64_t h, DType type) {
  if (gain.values == nullptr) return normalised;
  return (gain.in_float ? normalised : RoundTo(type, normalised)) * gain.values[h];
}

/// Normalises x[n, first .. first + size) into out.
void NormaliseRun(const ConstMatrix& x, int64_t n, int64_t first, int64_t size, NormGain gain, float epsilon,
                  const Matrix& out) {
  const float scale = NormScale(x, n, first, size, epsilon);
  for (int64_t h = 0; h < size; ++h)
    Store(out, n, first + h, Gained(Load(x, n, first + h) * scale, gain, h, out.dtype));
}

}  // namespace

std::unique_ptr<Ops> MakeReferenceOps(DType activation) { return std::make_unique<ReferenceOps>(activation); }

ReferenceWeight::ReferenceWeight(ConstMatrix host, DType activation)
    : out_(host.rows), in_(host.cols), values_(static_cast<size_t>(host.rows * host.cols)) {
  for (int64_t o = 0; o < out_; ++o) {
    for (int64_t i = 0; i < in_; ++i) {
      values_[static_cast<size_t>(o * in_ + i)] = RoundTo(activation, Load(host, o, i));
    }
  }
}

absl::StatusOr<DeviceBuffer> ReferenceOps::Allocate(size_t bytes) {
  ASSIGN_OR_RETURN(void* const data, memory_.Allocate(bytes));
  return DeviceBuffer(this, data, bytes);
}

void ReferenceOps::Upload(const void* host, void* device, size_t bytes) {
  if (bytes > 0) std::memcpy(device, host, bytes);
}

void ReferenceOps::Download(const void* device, void* host, size_t bytes) {
  if (bytes > 0) std::memcpy(host, device, bytes);
}

absl::StatusOr<std::unique_ptr<GemmWeight>> ReferenceOps::PrepareWeight(ConstMatrix host, WeightRole) {
  return std::make_unique<ReferenceWeight>(host, activation_);
}

void ReferenceOps::Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) {
  CHECK(table.cols == out.cols);
  for (int64_t n = 0; n < out.rows; ++n) {
    const int64_t row = ids[n] - first_id;
    const bool held = row >= 0 && row < table.rows;
    for (int64_t h = 0; h < out.cols; ++h) Store(out, n, h, held ? Load(table, row, h) : 0.0f);
  }
}

void ReferenceOps::RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) {
  CHECK(SameShape(x, out));
  for (int64_t n = 0; n < x.rows; ++n) NormaliseRun(x, n, 0, x.cols, gain, epsilon, out);
}

void ReferenceOps::AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) {
  CHECK(SameShape(y, x));
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t h = 0; h < x.cols; ++h) Store(x, n, h, Load(x, n, h) + Load(y, n, h));
  }
  RmsNorm(x, gain, epsilon, out);
}

void ReferenceOps::AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) {
  CHECK(SameShape(y, x));
  for (int64_t n = 0; n < x.rows; ++n) {
    const float scale = NormScale(y, n, 0, y.cols, epsilon);
    for (int64_t h = 0; h < x.cols; ++h) {
      const float normed = RoundTo(x.dtype, Gained(Load(y, n, h) * scale, gain, h, x.dtype));
      Store(x, n, h, Load(x, n, h) + normed);
    }
  }
}

void ReferenceOps::Scale(const float* factor, Matrix x) {
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t h = 0; h < x.cols; ++h) Store(x, n, h, Load(x, n, h) * *factor);
  }
}

void ReferenceOps::AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) {
  CHECK(SameShape(y, x));
  for (int64_t n = 0; n < x.rows; ++n) {
    if (rows[n] < 0) continue;
    for (int64_t h = 0; h < x.cols; ++h) Store(x, n, h, Load(x, n, h) + Load(y, n, h));
    NormaliseRun(x, n, 0, x.cols, nullptr, epsilon, x);
  }
}

void ReferenceOps::RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads,
                                  int32_t kv_heads, const KvLayer& cache, Matrix qkv) {
  CHECK(heads > 0 && kv_heads > 0 && qkv.rows == layout.rows && qkv.cols % (heads + 2 * kv_heads) == 0);
  const int64_t head_size = qkv.cols / (heads + 2 * kv_heads), rotated = heads + kv_heads;
  for (int64_t n = 0; n < qkv.rows; ++n) {
    for (int64_t head = 0; head < rotated + kv_heads; ++head) {
      const float* gain = head < heads ? transform.q_gain : head < rotated ? transform.k_gain : nullptr;
      if (gain == nullptr && (head < rotated || !transform.norm_values)) continue;
      NormaliseRun(qkv, n, head * head_size, head_size, {gain, transform.float_gain}, transform.epsilon, qkv);
    }
  }
  Rotate(layout, transform.rope, heads + kv_heads, ColumnBand(qkv, 0, rotated * head_size));
  WriteKv(layout, ColumnBand(qkv, heads * head_size, kv_heads * head_size),
          ColumnBand(qkv, rotated * head_size, kv_heads * head_size), cache);
}

void ReferenceOps::Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) {
  const auto& w = static_cast<const ReferenceWeight&>(weight);
  CHECK(x.cols == w.in_features() && out.cols == w.out_features() && x.rows == out.rows);
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t o = 0; o < out.cols; ++o) {
      float sum = 0.0f;
      for (int64_t i = 0; i < x.cols; ++i) sum += Load(x, n, i) * w.at(o, i);
      Store(out, n, o, sum);
    }
  }
}

void ReferenceOps::AddBias(const float* bias, Matrix x) {
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t c = 0; c < x.cols; ++c) Store(x, n, c, Load(x, n, c) + bias[c]);
  }
}

void ReferenceOps::Rotate(const StepLayout& layout, const RopeParameters& rope, int32_t heads, Matrix x) {
  CHECK(x.cols % (2 * heads) == 0);
  const DType table = rope.full_precision ? DType::kF32 : activation_;
  const int64_t head_size = x.cols / heads;
  const RopePairs pairs = PairsOf(rope, head_size);
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t i = 0; i < pairs.pairs; ++i) {
      const float angle = static_cast<float>(layout.positions[n]) * RopeFrequency(rope.theta, i, pairs);
      const float cosine = RoundTo(table, std::cos(angle)), sine = RoundTo(table, std::sin(angle));
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t c = head * head_size + i;
        const float low = Load(x, n, c), high = Load(x, n, c + pairs.distance);
        Store(x, n, c, low * cosine - high * sine);
        Store(x, n, c + pairs.distance, high * cosine + low * sine);
      }
    }
  }
}

void ReferenceOps::GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  CHECK(x.cols == out.cols);
  for (int64_t r = 0; r < out.rows; ++r) {
    CHECK(rows[r] >= 0 && rows[r] < x.rows);
    for (int64_t h = 0; h < x.cols; ++h) Store(out, r, h, Load(x, rows[r], h));
  }
}

void ReferenceOps::ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  CHECK(x.cols == out.cols);
  for (int64_t r = 0; r < x.rows; ++r) {
    if (rows[r] < 0) continue;
    CHECK(rows[r] < out.rows);
    for (int64_t h = 0; h < x.cols; ++h) Store(out, rows[r], h, Load(x, r, h));
  }
}

}  // namespace quicksilver
