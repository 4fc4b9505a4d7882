#include "kernels/cpu/row_kernels.h"

#include <cstring>

#include "kernels/cpu/simd.h"

namespace quicksilver {
namespace {

using simd::Floats;
using simd::kLanes;

// Elements [c, c + kLanes) of a row, or as many as there are.
template <typename T>
QS_INLINE Floats LoadAt(const T* row, int64_t c, int64_t cols) {
  return cols - c >= kLanes ? simd::Load(row + c) : simd::LoadFirst(row + c, cols - c);
}

template <typename T>
QS_INLINE void StoreAt(T* row, int64_t c, int64_t cols, Floats v) {
  if (cols - c >= kLanes) {
    simd::Store(row + c, v);
  } else {
    simd::StoreFirst(row + c, v, cols - c);
  }
}

template <typename T>
QS_INLINE const T* Row(const ConstMatrix& m, int64_t n) {
  return static_cast<const T*>(m.data) + n * m.stride;
}

template <typename T>
QS_INLINE T* Row(const Matrix& m, int64_t n) {
  return static_cast<T*>(m.data) + n * m.stride;
}

template <typename T>
QS_INLINE float NormScale(const T* x, int64_t size, float epsilon) {
  Floats squares = {};
  for (int64_t c = 0; c < size; c += kLanes) {
    const Floats v = LoadAt(x, c, size);
    squares += v * v;
  }
  return 1.0f / __builtin_sqrtf(simd::Sum(squares) / static_cast<float>(size) + epsilon);
}

// Elements [c, c + kLanes) of the normalised x.
template <typename T>
QS_INLINE Floats NormalisedAt(const T* x, int64_t c, int64_t size, float scale, const NormGain& gain) {
  const Floats normalised = LoadAt(x, c, size) * scale;
  if (gain.values == nullptr) return normalised;
  return (gain.in_float ? normalised : simd::RoundAs(x, normalised)) * LoadAt(gain.values, c, size);
}

template <typename T>
QS_INLINE void NormaliseRun(const T* x, int64_t size, const NormGain& gain, float epsilon, T* out) {
  const float scale = NormScale(x, size, epsilon);
  for (int64_t c = 0; c < size; c += kLanes) StoreAt(out, c, size, NormalisedAt(x, c, size, scale, gain));
}

template <typename T>
QS_INLINE void AddNormalised(const ConstMatrix& y, const NormGain& gain, float epsilon, const Matrix& x) {
  for (int64_t n = 0; n < x.rows; ++n) {
    const T* from = Row<T>(y, n);
    T* to = Row<T>(x, n);
    const float scale = NormScale(from, y.cols, epsilon);
    for (int64_t c = 0; c < x.cols; c += kLanes) {
      const Floats normed = simd::RoundAs(from, NormalisedAt(from, c, y.cols, scale, gain));
      StoreAt(to, c, x.cols, LoadAt(to, c, x.cols) + normed);
    }
  }
}

template <typename T>
QS_INLINE void Scale(float factor, const Matrix& x) {
  for (int64_t n = 0; n < x.rows; ++n) {
    T* to = Row<T>(x, n);
    for (int64_t c = 0; c < x.cols; c += kLanes) StoreAt(to, c, x.cols, LoadAt(to, c, x.cols) * factor);
  }
}

template <typename T>
QS_INLINE void Normalise(const ConstMatrix& x, int64_t heads, const NormGain& gain, float epsilon, const Matrix& out) {
  const int64_t size = x.cols / heads;
  for (int64_t n = 0; n < x.rows; ++n) {
    for (int64_t head = 0; head < heads; ++head) {
      NormaliseRun(Row<T>(x, n) + head * size, size, gain, epsilon, Row<T>(out, n) + head * size);
    }
  }
}

template <typename T>
QS_INLINE void Add(const ConstMatrix& y, const Matrix& x) {
  for (int64_t n = 0; n < x.rows; ++n) {
    const T* from = Row<T>(y, n);
    T* to = Row<T>(x, n);
    for (int64_t c = 0; c < x.cols; c += kLanes) {
      StoreAt(to, c, x.cols, LoadAt(to, c, x.cols) + LoadAt(from, c, x.cols));
    }
  }
}

template <typename T>
QS_INLINE void AddBias(const float* bias, const Matrix& x) {
  for (int64_t n = 0; n < x.rows; ++n) {
    T* to = Row<T>(x, n);
    for (int64_t c = 0; c < x.cols; c += kLanes) {
      StoreAt(to, c, x.cols, LoadAt(to, c, x.cols) + LoadAt(bias, c, x.cols));
    }
  }
}

QS_INLINE Floats Activate(Activation activation, Floats x) {
  if (activation == Activation::kSilu) return x / (1.0f + simd::Exp(-x));
  // (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)).
  const Floats minus_two_u = -1.5957691216057308f * (x + 0.044715f * x * x * x);
  return x / (1.0f + simd::Exp(minus_two_u));
}

template <typename T>
QS_INLINE void GatedMul(Activation activation, const ConstMatrix& gate_up, const Matrix& out) {
  for (int64_t n = 0; n < out.rows; ++n) {
    const T* gates = Row<T>(gate_up, n);
    const T* ups = gates + out.cols;
    T* to = Row<T>(out, n);
    for (int64_t c = 0; c < out.cols; c += kLanes) {
      StoreAt(to, c, out.cols, Activate(activation, LoadAt(gates, c, out.cols)) * LoadAt(ups, c, out.cols));
    }
  }
}

template <typename T>
QS_INLINE void WeightedSum(const ConstMatrix& from, const int32_t* rows, const float* weights, int32_t k, bool add,
                           const Matrix& out) {
  for (int64_t n = 0; n < out.rows; ++n) {
    T* to = Row<T>(out, n);
    for (int64_t c = 0; c < out.cols; c += kLanes) {
      Floats sum = {};
      for (int64_t j = n * k; j < (n + 1) * k; ++j) {
        if (rows[j] >= 0) sum += weights[j] * LoadAt(Row<T>(from, rows[j]), c, out.cols);
      }
      sum = simd::RoundAs(to, sum);
      StoreAt(to, c, out.cols, add ? LoadAt(to, c, out.cols) + sum : sum);
    }
  }
}

template <typename T>
QS_INLINE void Rotate(const RowRotation& rotation, int64_t heads, const Matrix& x) {
  const int64_t pairs = rotation.pairs, head_size = x.cols / heads;
  for (int64_t n = 0; n < x.rows; ++n) {
    const float* cosine = rotation.cosines + rotation.positions[n] * pairs;
    const float* sine = rotation.sines + rotation.positions[n] * pairs;
    for (int64_t head = 0; head < heads; ++head) {
      T* low = Row<T>(x, n) + head * head_size;
      T* high = low + rotation.distance;
      for (int64_t c = 0; c < pairs; c += kLanes) {
        const Floats cos_c = LoadAt(cosine, c, pairs), sin_c = LoadAt(sine, c, pairs);
        const Floats a = LoadAt(low, c, pairs), b = LoadAt(high, c, pairs);
        StoreAt(low, c, pairs, a * cos_c - b * sin_c);
        StoreAt(high, c, pairs, b * cos_c + a * sin_c);
      }
    }
  }
}

template <typename From, typename To>
QS_INLINE void Convert(const ConstMatrix& from, const Matrix& to) {
  for (int64_t n = 0; n < from.rows; ++n) {
    for (int64_t c = 0; c < from.cols; c += kLanes) {
      StoreAt(Row<To>(to, n), c, from.cols, LoadAt(Row<From>(from, n), c, from.cols));
    }
  }
}

}  // namespace

QS_MULTIVERSIONED void NormaliseRows(ConstMatrix x, int64_t heads, NormGain gain, float epsilon, Matrix out) {
  if (x.dtype == DType::kF32) {
    Normalise<float>(x, heads, gain, epsilon, out);
  } else {
    Normalise<uint16_t>(x, heads, gain, epsilon, out);
  }
}

QS_MULTIVERSIONED void AddNormalisedRows(ConstMatrix y, NormGain gain, float epsilon, Matrix x) {
  if (x.dtype == DType::kF32) {
    AddNormalised<float>(y, gain, epsilon, x);
  } else {
    AddNormalised<uint16_t>(y, gain, epsilon, x);
  }
}

QS_MULTIVERSIONED void ScaleRows(float factor, Matrix x) {
  if (x.dtype == DType::kF32) {
    Scale<float>(factor, x);
  } else {
    Scale<uint16_t>(factor, x);
  }
}

QS_MULTIVERSIONED void AddRows(ConstMatrix y, Matrix x) {
  if (x.dtype == DType::kF32) {
    Add<float>(y, x);
  } else {
    Add<uint16_t>(y, x);
  }
}

QS_MULTIVERSIONED void AddBiasRows(const float* bias, Matrix x) {
  if (x.dtype == DType::kF32) {
    AddBias<float>(bias, x);
  } else {
    AddBias<uint16_t>(bias, x);
  }
}

QS_MULTIVERSIONED void GatedMulRows(Activation activation, ConstMatrix gate_up, Matrix out) {
  if (out.dtype == DType::kF32) {
    GatedMul<float>(activation, gate_up, out);
  } else {
    GatedMul<uint16_t>(activation, gate_up, out);
  }
}

QS_MULTIVERSIONED void WeightedSumRows(ConstMatrix from, const int32_t* rows, const float* weights, int32_t k, bool add,
                                       Matrix out) {
  if (out.dtype == DType::kF32) {
    WeightedSum<float>(from, rows, weights, k, add, out);
  } else {
    WeightedSum<uint16_t>(from, rows, weights, k, add, out);
  }
}

QS_MULTIVERSIONED void RotateRows(const RowRotation& rotation, int64_t heads, Matrix x) {
  if (x.dtype == DType::kF32) {
    Rotate<float>(rotation, heads, x);
  } else {
    Rotate<uint16_t>(rotation, heads, x);
  }
}

QS_MULTIVERSIONED void ConvertRows(ConstMatrix from, Matrix to) {
  if (from.dtype == to.dtype) {
    for (int64_t n = 0; n < from.rows; ++n) {
      std::memcpy(static_cast<char*>(to.data) + n * to.stride * ElementBytes(to.dtype),
                  static_cast<const char*>(from.data) + n * from.stride * ElementBytes(from.dtype),
                  static_cast<size_t>(from.cols) * ElementBytes(from.dtype));
    }
  } else if (from.dtype == DType::kF32) {
    Convert<float, uint16_t>(from, to);
  } else {
    Convert<uint16_t, float>(from, to);
  }
}

}  // namespace quicksilver
