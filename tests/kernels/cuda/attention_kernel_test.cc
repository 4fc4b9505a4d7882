#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/kernels/cuda/attention_run.h"

namespace quicksilver {
namespace {

using attention::Split;

class AttentionKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string missing = WhyNoDevice();
    if (!missing.empty()) GTEST_SKIP() << missing;
  }

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

// Windows that begin in the middle of a chunk and of a tile, and shadow rows that each miss another key.
TEST_F(AttentionKernelTest, NoBitOfAMaskedRowDependsOnWhoMergesTheChunks) {
  for (const int32_t head_size : {64, 128, 256, 16}) {
    SCOPED_TRACE(absl::StrCat("hd ", head_size));
    const AttentionShape shape = {2, 1, head_size, 32, 1, {.window = 301}};
    std::vector<TestSequence> sequences = {RandomSequence(shape, 8, 1320, 1328, 1),
                                           RandomSequence(shape, 40, 100, 140, 2),
                                           RandomSequence(shape, 70, 600, 680, 3)};
    sequences[2].block_length = kBidirectional;
    sequences[2].unseen_key = 590;
    const HostMatrix whole = RunKernels(shape, sequences, DType::kBf16, {.split = Split::kNever});
    ExpectNear(whole, NaiveAttention(shape, sequences, DType::kBf16), RoundingError(DType::kBf16), 5e-6);
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.split = Split::kAlways}), whole);
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.split = Split::kAlways, .partial_bytes = 64000}),
                   whole);
    ExpectSameBits(RunKernels(shape, sequences, DType::kBf16, {.rows_max = 1024, .padding_rows = 9}), whole);
  }
}

// Layers of several windows take turns: each finds its own work list, or makes it anew.
TEST_F(AttentionKernelTest, LayersOfSeveralWindowsTakeTurns) {
  const AttentionShape shape = {2, 1, 64, 16, 1};
  AttentionRun run(shape, Ragged(shape), DType::kBf16, {.split = Split::kAlways});
  std::map<int32_t, HostMatrix> of_window;
  for (const int32_t window : {0, 70, 0, 70, 33, 0, 70, 33}) {
    run.UseRule({.window = window});
    run.ForgetResult();
    run.Enqueue(nullptr);
    const HostMatrix result = run.Result();
    const auto [known, first] = of_window.try_emplace(window, result);
    ExpectSameBits(result, known->second);
    if (!first) continue;
    AttentionShape masked = shape;
    masked.rule.window = window;
    ExpectNear(result, NaiveAttention(masked, Ragged(shape), DType::kBf16), RoundingError(DType::kBf16), 5e-6);
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

// Every layer after the first finds the plan made, and begins with the keys of earlier steps before its turn.
TEST_F(AttentionKernelTest, ALaterLayerGivesTheSameBits) {
  for (const int32_t head_size : {64, 128, 256, 16}) {
    const AttentionShape shape = {2, 1, head_size, 16, 4};
    AttentionRun run(shape, Ragged(shape), DType::kBf16, {.split = Split::kAlways});
    run.Enqueue(nullptr);
    const HostMatrix first = run.Result();
    run.ForgetResult();
    run.Enqueue(nullptr);
    ExpectSameBits(run.Result(), first);
  }
}

// A recorded step is replayed with other segments: what was launched may not depend on them.
TEST_F(AttentionKernelTest, AReplayFollowsTheSegmentsOnTheDevice) {
  const AttentionShape shape = {2, 1, 64, 16, kBidirectional};
  std::vector<TestSequence> sequences = {RandomSequence(shape, 8, 300, 308, 1), RandomSequence(shape, 20, 0, 20, 2)};
  AttentionRun run(shape, sequences, DType::kBf16, {});
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
