#include "tests/kernels/cuda/attention_run.h"

#include <cmath>
#include <numeric>
#include <random>

namespace quicksilver {
namespace {

constexpr float kUntouched = 12352.0f;  // A bf16 number.

/// `m` in device memory, `gap` elements between rows.
AttentionMemory Put(const HostMatrix& m, DType dtype, int64_t gap) {
  std::vector<float> wide(static_cast<size_t>(m.rows * (m.cols + gap)), kUntouched);
  for (int64_t r = 0; r < m.rows; ++r) std::copy_n(m.row(r), m.cols, wide.begin() + r * (m.cols + gap));
  if (dtype == DType::kF32) return AttentionMemory(wide);
  std::vector<uint16_t> narrow(wide.size());
  std::transform(wide.begin(), wide.end(), narrow.begin(), FloatToBf16);
  return AttentionMemory(narrow);
}

AttentionStep LayOut(const AttentionShape& shape, const std::vector<TestSequence>& sequences, uint32_t page_seed) {
  AttentionStep step;
  int64_t pages = 1, rows = 0;
  for (const TestSequence& s : sequences) {
    pages += (s.keys.rows + shape.page_size - 1) / shape.page_size;
    rows += s.queries.rows;
  }
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(page_seed));
  step.q = HostMatrix(rows, int64_t{shape.heads} * shape.head_size);
  step.keys = HostMatrix(pages * shape.page_size, int64_t{shape.kv_heads} * shape.head_size);
  std::fill(step.keys.values.begin(), step.keys.values.end(), NAN);
  step.values = step.keys;
  int64_t row = 0;
  for (const TestSequence& s : sequences) {
    step.segments.push_back({.first_row = static_cast<int32_t>(row),
                             .rows = static_cast<int32_t>(s.queries.rows),
                             .first_position = s.first_position,
                             .keys = static_cast<int32_t>(s.keys.rows),
                             .first_page = static_cast<int32_t>(step.page_table.size()),
                             .block_length = shape.BlockOf(s),
                             .unseen_key = s.unseen_key});
    step.rows_max = std::max(step.rows_max, step.segments.back().rows);
    step.keys_max = std::max(step.keys_max, step.segments.back().keys);
    for (int64_t r = 0; r < s.queries.rows; ++r, ++row) {
      std::copy_n(s.queries.row(r), s.queries.cols, &step.q.at(row, 0));
    }
    for (int64_t j = 0; j < s.keys.rows; ++j) {
      if (j % shape.page_size == 0) step.page_table.push_back(order[step.page_table.size()]);
      const int64_t slot = int64_t{step.page_table.back()} * shape.page_size + j % shape.page_size;
      std::copy_n(s.keys.row(j), s.keys.cols, &step.keys.at(slot, 0));
      std::copy_n(s.values.row(j), s.values.cols, &step.values.at(slot, 0));
    }
  }
  return step;
}

HostMatrix WithPadding(const HostMatrix& m, int64_t rows) {
  HostMatrix padded(rows, m.cols, std::vector<float>(static_cast<size_t>(rows * m.cols), kUntouched));
  std::copy(m.values.begin(), m.values.end(), padded.values.begin());
  return padded;
}

}  // namespace

AttentionRun::AttentionRun(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype,
                           const RunSettings& settings)
    : shape_(shape),
      dtype_(dtype),
      settings_(settings),
      step_(LayOut(shape, sequences, settings.page_seed)),
      rows_(step_.q.rows + settings.padding_rows),
      q_(Put(WithPadding(step_.q, rows_), dtype, settings.row_gap)),
      out_(Put(WithPadding(HostMatrix(0, step_.q.cols), rows_), dtype, settings.row_gap)),
      keys_(Put(step_.keys, dtype, settings.cache_gap)),
      values_(Put(step_.values, dtype, settings.cache_gap)),
      page_table_(step_.page_table),
      segments_(Segments()),
      workspace_(CudaAttention::WorkspaceBytes(Options())),
      attention_(Options(), workspace_.As<void>()) {}

void AttentionRun::Enqueue(cudaStream_t stream) {
  const StepLayout layout = {.rows = static_cast<int32_t>(rows_),
                             .segments = segments_.As<AttentionSegment>(),
                             .segments_count = static_cast<int32_t>(Segments().size()),
                             .page_table = page_table_.As<int32_t>(),
                             .page_size = shape_.page_size,
                             .rows_max = std::max(step_.rows_max, settings_.rows_max),
                             .keys_max = step_.keys_max};
  const int64_t cols = step_.q.cols, kv_cols = step_.keys.cols;
  const KvLayer cache = {{keys_.As<void>(), step_.keys.rows, kv_cols, kv_cols + settings_.cache_gap, dtype_},
                         {values_.As<void>(), step_.keys.rows, kv_cols, kv_cols + settings_.cache_gap, dtype_}};
  EXPECT_EQ(attention_.Run(stream, layout, {q_.As<void>(), rows_, cols, cols + settings_.row_gap, dtype_}, shape_.heads,
                           shape_.kv_heads, shape_.rule, cache,
                           {out_.As<void>(), rows_, cols, cols + settings_.row_gap, dtype_}),
            cudaSuccess);
}

HostMatrix AttentionRun::Result() const {
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const int64_t stride = step_.q.cols + settings_.row_gap;
  std::vector<float> wide(static_cast<size_t>(rows_ * stride));
  if (dtype_ == DType::kF32) {
    wide = out_.Values<float>(wide.size());
  } else {
    const std::vector<uint16_t> narrow = out_.Values<uint16_t>(wide.size());
    std::transform(narrow.begin(), narrow.end(), wide.begin(), Bf16ToFloat);
  }
  HostMatrix result(step_.q.rows, step_.q.cols);
  for (int64_t i = 0; i < rows_ * stride; ++i) {
    if (i / stride < result.rows && i % stride < result.cols) {
      result.at(i / stride, i % stride) = wide[i];
    } else {
      EXPECT_EQ(wide[i], kUntouched) << "written at row " << i / stride << ", column " << i % stride;
    }
  }
  return result;
}

void AttentionRun::ForgetResult() {
  out_ = Put(WithPadding(HostMatrix(0, step_.q.cols), rows_), dtype_, settings_.row_gap);
}

void AttentionRun::DropRows(size_t s, int32_t rows) {
  std::vector<AttentionSegment> segments = Segments();
  segments[s].rows -= rows;
  segments[s].keys -= rows;
  segments_.Fill(segments);
}

CudaAttentionOptions AttentionRun::Options() const {
  return {
      .multiprocessors = settings_.multiprocessors, .partial_bytes = settings_.partial_bytes, .split = settings_.split};
}

std::vector<AttentionSegment> AttentionRun::Segments() const {
  std::vector<AttentionSegment> segments = step_.segments;
  if (settings_.padding_rows > 0) segments.resize(segments.size() + 2);
  return segments;
}

HostMatrix RunKernels(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype,
                      const RunSettings& settings) {
  AttentionRun run(shape, sequences, dtype, settings);
  run.Enqueue(nullptr);
  return run.Result();
}

std::string WhyNoDevice() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return "";
  cudaGetLastError();
  return error == cudaSuccess ? "no CUDA device" : cudaGetErrorString(error);
}

}  // namespace quicksilver
