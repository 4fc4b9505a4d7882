#include <cuda_runtime_api.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "tests/kernels/attention_case.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using attention::Split;

/// Device memory of a test.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes) { EXPECT_EQ(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), cudaSuccess); }
  template <typename T>
  explicit DeviceBytes(const std::vector<T>& values) : DeviceBytes(values.size() * sizeof(T)) {
    Fill(values);
  }
  DeviceBytes(DeviceBytes&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  ~DeviceBytes() { EXPECT_EQ(cudaFree(data_), cudaSuccess); }

  template <typename T>
  void Fill(const std::vector<T>& values) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
  }
  template <typename T>
  std::vector<T> Values(size_t count) const {
    std::vector<T> values(count);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  template <typename T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

/// What is different between runs that must give the same bits.
struct RunSettings {
  Split split = Split::kAuto;
  size_t partial_bytes = size_t{8} << 20;
  int32_t multiprocessors = 3;
  int32_t rows_max = 0;      ///< At least: a captured step knows but an upper bound.
  int32_t padding_rows = 0;  ///< Rows at the end that belong to no segment.
  int64_t cache_gap = 0;     ///< Elements between the rows of the cache, and
  int64_t row_gap = 0;       ///< between those of q and out.
  uint32_t page_seed = 7;
};

constexpr float kUntouched = 12352.0f;  // A bf16 number.

/// `m` in device memory, `gap` elements between rows.
DeviceBytes Put(const HostMatrix& m, DType dtype, int64_t gap) {
  std::vector<float> wide(static_cast<size_t>(m.rows * (m.cols + gap)), kUntouched);
  for (int64_t r = 0; r < m.rows; ++r) std::copy_n(m.row(r), m.cols, wide.begin() + r * (m.cols + gap));
  if (dtype == DType::kF32) return DeviceBytes(wide);
  std::vector<uint16_t> narrow(wide.size());
  std::transform(wide.begin(), wide.end(), narrow.begin(), FloatToBf16);
  return DeviceBytes(narrow);
}

/// A step's arrays, the cache filled.
struct Step {
  std::vector<AttentionSegment> segments;
  std::vector<int32_t> page_table;
  HostMatrix q, keys, values;
  int32_t rows_max = 0, keys_max = 0;
};

Step LayOut(const AttentionShape& shape, const std::vector<TestSequence>& sequences, uint32_t page_seed) {
  Step step;
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
                             .first_page = static_cast<int32_t>(step.page_table.size())});
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

/// The kernels over all sequences at once, on memory of its own.
class KernelRun {
 public:
  KernelRun(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype,
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

  void Enqueue(cudaStream_t stream) {
    const StepLayout layout = {.rows = static_cast<int32_t>(rows_),
                               .segments = segments_.As<AttentionSegment>(),
                               .segments_count = static_cast<int32_t>(Segments().size()),
                               .page_table = page_table_.As<int32_t>(),
                               .page_size = shape_.page_size,
                               .block_length = shape_.block_length,
                               .rows_max = std::max(step_.rows_max, settings_.rows_max),
                               .keys_max = step_.keys_max};
    const int64_t cols = step_.q.cols, kv_cols = step_.keys.cols;
    const KvLayer cache = {{keys_.As<void>(), step_.keys.rows, kv_cols, kv_cols + settings_.cache_gap, dtype_},
                           {values_.As<void>(), step_.keys.rows, kv_cols, kv_cols + settings_.cache_gap, dtype_}};
    EXPECT_EQ(
        attention_.Run(stream, layout, {q_.As<void>(), rows_, cols, cols + settings_.row_gap, dtype_}, shape_.heads,
                       shape_.kv_heads, cache, {out_.As<void>(), rows_, cols, cols + settings_.row_gap, dtype_}),
        cudaSuccess);
  }

  /// The rows of all sequences, in order. Fails where anything else was written.
  HostMatrix Result() const {
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

  /// Lets segment `s` end `rows` earlier, on the device alone.
  void DropRows(size_t s, int32_t rows) {
    std::vector<AttentionSegment> segments = Segments();
    segments[s].rows -= rows;
    segments[s].keys -= rows;
    segments_.Fill(segments);
  }

 private:
  CudaAttentionOptions Options() const {
    return {.multiprocessors = settings_.multiprocessors,
            .partial_bytes = settings_.partial_bytes,
            .split = settings_.split};
  }
  std::vector<AttentionSegment> Segments() const {
    std::vector<AttentionSegment> segments = step_.segments;
    if (settings_.padding_rows > 0) segments.resize(segments.size() + 2);
    return segments;
  }
  static HostMatrix WithPadding(const HostMatrix& m, int64_t rows) {
    HostMatrix padded(rows, m.cols, std::vector<float>(static_cast<size_t>(rows * m.cols), kUntouched));
    std::copy(m.values.begin(), m.values.end(), padded.values.begin());
    return padded;
  }

  AttentionShape shape_;
  DType dtype_;
  RunSettings settings_;
  Step step_;
  int64_t rows_;
  DeviceBytes q_, out_, keys_, values_, page_table_, segments_, workspace_;
  CudaAttention attention_;
};

HostMatrix RunKernels(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype,
                      const RunSettings& settings) {
  KernelRun run(shape, sequences, dtype, settings);
  run.Enqueue(nullptr);
  return run.Result();
}

class AttentionKernelTest : public ::testing::Test {
 protected:
  void TearDown() override { cuda_twin::TwinDevice().Reset(); }

  void ExpectAgreesWithTheDefinition(const AttentionShape& shape, const std::vector<TestSequence>& sequences,
                                     DType dtype, const RunSettings& settings = {}) {
    SCOPED_TRACE(absl::StrCat("heads ", shape.heads, "/", shape.kv_heads, " hd ", shape.head_size, " page ",
                              shape.page_size, " block ", shape.block_length, dtype == DType::kF32 ? " f32" : " bf16"));
    ExpectNear(RunKernels(shape, sequences, dtype, settings), NaiveAttention(shape, sequences, dtype),
               RoundingError(dtype), 5e-6);
  }
};

// A long past with an odd end, a prefill from 0, a lone row, and a step of one block.
std::vector<TestSequence> Ragged(const AttentionShape& shape) {
  return {RandomSequence(shape, 8, 168, 179, 1), RandomSequence(shape, 45, 0, 45, 2),
          RandomSequence(shape, 1, 100, 104, 3), RandomSequence(shape, 4, 0, 4, 4)};
}

TEST_F(AttentionKernelTest, EveryHeadSizeAgreesWithTheDefinition) {
  for (const AttentionShape& shape :
       {AttentionShape{4, 2, 64, 16, 8}, AttentionShape{3, 1, 128, 8, 4}, AttentionShape{2, 2, 256, 24, 8},
        AttentionShape{2, 1, 16, 8, 4}, AttentionShape{3, 3, 96, 32, 1}, AttentionShape{7, 1, 64, 3, 1},
        AttentionShape{10, 1, 128, 64, kBidirectional}, AttentionShape{2, 1, 200, 5, kBidirectional}}) {
    ExpectAgreesWithTheDefinition(shape, Ragged(shape), DType::kBf16);
    if (shape.head_size % 128 != 0) ExpectAgreesWithTheDefinition(shape, Ragged(shape), DType::kF32);
  }
}

TEST_F(AttentionKernelTest, SplitKeysAgreeWithTheDefinition) {
  for (const int32_t head_size : {64, 128, 256, 32}) {
    const AttentionShape shape = {2, 1, head_size, 16, 4};
    ExpectAgreesWithTheDefinition(shape, Ragged(shape), DType::kBf16, {.split = Split::kAlways});
  }
}

// Chunks of 128 keys, then some of 256: every way to do them.
TEST_F(AttentionKernelTest, NoBitDependsOnWhoMergesTheChunks) {
  for (const int32_t head_size : {64, 128, 256, 16}) {
    SCOPED_TRACE(absl::StrCat("hd ", head_size));
    const AttentionShape shape = {2, 1, head_size, 32, 8};
    const std::vector<TestSequence> sequences = {RandomSequence(shape, 8, 1320, 1328, 1),
                                                 RandomSequence(shape, 40, 100, 140, 2),
                                                 RandomSequence(shape, 3, 509, 512, 3)};
    const HostMatrix whole = RunKernels(shape, sequences, DType::kBf16, {.split = Split::kNever});
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.split = Split::kAlways}), whole);
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.split = Split::kAuto, .multiprocessors = 2}), whole);
    // Room for some of them only.
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.split = Split::kAlways, .partial_bytes = 64000}),
                   whole);
  }
}

TEST_F(AttentionKernelTest, NoBitDependsOnTilesNeighboursOrMemory) {
  for (const int32_t head_size : {64, 128}) {
    SCOPED_TRACE(absl::StrCat("hd ", head_size));
    AttentionShape shape = {4, 2, head_size, 16, 4};
    const std::vector<TestSequence> sequences = Ragged(shape);
    const HostMatrix expected = RunKernels(shape, sequences, DType::kBf16, {.rows_max = 8});
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.rows_max = 1024}), expected);
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.padding_rows = 9}), expected);
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.cache_gap = 3, .row_gap = 5, .page_seed = 3}),
                   expected);
    ExpectSameBits(RunKernels(shape, {sequences[3]}, DType::kBf16, {}), SelectRows(expected, {54, 55, 56, 57}));
    shape.page_size = 12;
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.multiprocessors = 1}), expected);
  }
}

TEST_F(AttentionKernelTest, APrefillMayBeCutAnywhere) {
  const AttentionShape shape = {4, 2, 64, 16, 4};
  const int32_t length = 220;
  const TestSequence whole = RandomSequence(shape, length, 0, length, 1);
  const HostMatrix expected = RunKernels(shape, {whole}, DType::kBf16, {});
  for (const int32_t cut : {4, 60, 128}) {
    SCOPED_TRACE(absl::StrCat("cut every ", cut, " rows"));
    for (int32_t first = 0; first < length; first += cut) {
      const int32_t end = std::min(length, first + cut);
      std::vector<int32_t> rows(static_cast<size_t>(end - first)), keys(static_cast<size_t>(end));
      std::iota(rows.begin(), rows.end(), first);
      std::iota(keys.begin(), keys.end(), 0);
      const TestSequence part = {first, SelectRows(whole.queries, rows), SelectRows(whole.keys, keys),
                                 SelectRows(whole.values, keys)};
      ExpectSameBits(
          RunKernels(shape, {part}, DType::kBf16, {.split = first % 8 == 0 ? Split::kAlways : Split::kNever}),
          SelectRows(expected, rows));
    }
  }
}

// Where a key or a value of a later block is NaN, earlier blocks keep their bits, and who sees it shows it.
TEST_F(AttentionKernelTest, HiddenGarbageDoesNotReachEarlierBlocks) {
  for (const int32_t head_size : {64, 256, 24}) {
    for (const bool in_key : {false, true}) {
      SCOPED_TRACE(absl::StrCat("hd ", head_size, in_key ? " key" : " value"));
      const AttentionShape shape = {2, 1, head_size, 8, 8};
      TestSequence sequence = RandomSequence(shape, 24, 0, 24, 1);
      const HostMatrix expected = RunKernels(shape, {sequence}, DType::kBf16, {});
      HostMatrix& spoiled = in_key ? sequence.keys : sequence.values;
      std::fill_n(&spoiled.at(13, 0), 2 * spoiled.cols, NAN);  // An odd key and an even one.
      const HostMatrix actual = RunKernels(shape, {sequence}, DType::kBf16, {});
      const std::vector<int32_t> first_block = {0, 1, 2, 3, 4, 5, 6, 7};
      ExpectSameBits(SelectRows(actual, first_block), SelectRows(expected, first_block));
      for (int64_t r = 8; r < 24; ++r) {
        for (int64_t c = 0; c < actual.cols; ++c) ASSERT_TRUE(std::isnan(actual.at(r, c))) << "row " << r;
      }
    }
  }
}

TEST_F(AttentionKernelTest, NoBitDependsOnTheOrderOfThreads) {
  for (const auto& [head_size, dtype] : {std::pair{64, DType::kBf16}, {256, DType::kBf16}, {24, DType::kF32}}) {
    SCOPED_TRACE(absl::StrCat("hd ", head_size));
    const AttentionShape shape = {2, 1, head_size, 16, 4};
    const std::vector<TestSequence> sequences = Ragged(shape);
    const HostMatrix expected = RunKernels(shape, sequences, dtype, {.split = Split::kAlways});
    for (const uint64_t seed : {1, 2, 3, 4}) {
      cuda_twin::TwinDevice().SetThreadOrderSeed(seed);
      ExpectSameBits(RunKernels(shape, sequences, dtype, {.split = Split::kAlways}), expected);
    }
  }
}

// A recorded step is replayed with other segments: what was launched may not depend on them.
TEST_F(AttentionKernelTest, AReplayFollowsTheSegmentsOnTheDevice) {
  const AttentionShape shape = {2, 1, 64, 16, kBidirectional};
  std::vector<TestSequence> sequences = {RandomSequence(shape, 8, 300, 308, 1), RandomSequence(shape, 20, 0, 20, 2)};
  KernelRun run(shape, sequences, DType::kBf16, {});
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  run.Enqueue(stream);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t program = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&program, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphLaunch(program, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  const HostMatrix first = run.Result();
  ExpectSameBits(first, RunKernels(shape, sequences, DType::kBf16, {}));

  run.DropRows(0, 8);
  run.DropRows(1, 5);
  ASSERT_EQ(cudaGraphLaunch(program, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  const TestSequence& s = sequences[1];
  std::vector<int32_t> kept(15), dropped = {0, 1, 2, 3, 4, 5, 6, 7, 23, 24, 25, 26, 27};
  std::iota(kept.begin(), kept.end(), 0);
  const TestSequence shorter = {0, SelectRows(s.queries, kept), SelectRows(s.keys, kept), SelectRows(s.values, kept)};
  const HostMatrix expected = RunKernels(shape, {shorter}, DType::kBf16, {}), second = run.Result();
  std::iota(kept.begin(), kept.end(), 8);
  ExpectSameBits(SelectRows(second, kept), expected);
  ExpectSameBits(SelectRows(second, dropped), SelectRows(first, dropped));
  EXPECT_EQ(cudaGraphExecDestroy(program), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

TEST_F(AttentionKernelTest, LargeScoresDoNotOverflow) {
  const AttentionShape shape = {2, 1, 64, 8, 8};
  TestSequence sequence = RandomSequence(shape, 8, 192, 200, 1);
  for (float& value : sequence.queries.values) value *= 30.0f;
  for (float& value : sequence.keys.values) value *= 3.0f;
  // A score of some hundreds carries an error of some 1e-5, which weights show in full.
  ExpectNear(RunKernels(shape, {sequence}, DType::kBf16, {}), NaiveAttention(shape, {sequence}, DType::kBf16),
             RoundingError(DType::kBf16), 3e-4);
}

}  // namespace
}  // namespace quicksilver
