#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/kernels/attention_case.h"

namespace quicksilver {
namespace {

class AttentionMaskTest : public OpsTest {
 protected:
  void ExpectAgreesWithTheDefinition(const AttentionShape& shape, const std::vector<TestSequence>& sequences) {
    const HostMatrix actual = RunAttention(*this, shape, sequences, /*page_seed=*/7);
    // Means of values of size 1: float sums of some hundred weights, and one rounding.
    ExpectNear(actual, NaiveAttention(shape, sequences, dtype()), RoundingError(dtype()), 5e-6);
  }

  /// Every sequence alone has the bits that it has among the others.
  void ExpectSequencesDoNotMix(const AttentionShape& shape, const std::vector<TestSequence>& sequences) {
    const HostMatrix together = RunAttention(*this, shape, sequences, /*page_seed=*/1);
    int32_t first = 0;
    for (const TestSequence& sequence : sequences) {
      std::vector<int32_t> rows(static_cast<size_t>(sequence.queries.rows));
      std::iota(rows.begin(), rows.end(), first);
      first += static_cast<int32_t>(rows.size());
      ExpectSameBits(RunAttention(*this, shape, {sequence}, /*page_seed=*/2), SelectRows(together, rows));
    }
  }
};

TestSequence Masked(TestSequence sequence, int32_t block_length) {
  sequence.block_length = block_length;
  return sequence;
}

// A causal prefill, a block of a block-causal model, a canvas, a lone causal row: none a multiple of the tiles.
std::vector<TestSequence> OfEveryMask(const AttentionShape& shape) {
  return {Masked(RandomSequence(shape, 70, 130, 200, 1), 1), Masked(RandomSequence(shape, 8, 96, 104, 2), 8),
          Masked(RandomSequence(shape, 24, 150, 180, 3), kBidirectional),
          Masked(RandomSequence(shape, 1, 100, 101, 4), 1),
          Masked(RandomSequence(shape, 33, 0, 33, 5), kBidirectional)};
}

TEST_P(AttentionMaskTest, SegmentsOfEveryMaskMixInOneBatch) {
  for (const int32_t head_size : {16, 64}) {
    const AttentionShape shape = {4, 2, head_size, 16};
    ExpectAgreesWithTheDefinition(shape, OfEveryMask(shape));
    ExpectSequencesDoNotMix(shape, OfEveryMask(shape));
  }
}

TEST_P(AttentionMaskTest, AWindowHidesEarlierKeys) {
  for (const int32_t window : {1, 5, 32, 64, 100, 1000}) {
    for (const int32_t head_size : {16, 64}) {
      SCOPED_TRACE(absl::StrCat("window ", window, " hd ", head_size));
      const AttentionShape shape = {4, 2, head_size, 16, kBidirectional, {.window = window}};
      ExpectAgreesWithTheDefinition(shape, OfEveryMask(shape));
      ExpectSequencesDoNotMix(shape, OfEveryMask(shape));
    }
  }
}

// A long past of which a window leaves little: whole tiles and chunks of keys are passed over.
TEST_P(AttentionMaskTest, AWindowFarBehindTheStartStillSeesItsKeys) {
  const AttentionShape shape = {2, 1, 64, 64, kBidirectional, {.window = 50}};
  ExpectAgreesWithTheDefinition(shape, {Masked(RandomSequence(shape, 4, 1500, 1504, 1), 1),
                                        Masked(RandomSequence(shape, 16, 1100, 1116, 2), kBidirectional)});
}

TEST_P(AttentionMaskTest, APrefillUnderAWindowMayBeCutAnywhere) {
  const int32_t length = 150;
  const AttentionShape shape = {4, 2, 64, 16, 1, {.window = 37}};
  const TestSequence whole = RandomSequence(shape, length, 0, length, 1);
  const HostMatrix expected = RunAttention(*this, shape, {whole}, 1);
  for (const int32_t cut : {7, 40, 64}) {
    SCOPED_TRACE(absl::StrCat("cut every ", cut, " rows"));
    for (int32_t first = 0; first < length; first += cut) {
      const int32_t end = std::min(length, first + cut);
      std::vector<int32_t> rows(static_cast<size_t>(end - first)), keys(static_cast<size_t>(end));
      std::iota(rows.begin(), rows.end(), first);
      std::iota(keys.begin(), keys.end(), 0);
      const TestSequence part = {first, SelectRows(whole.queries, rows), SelectRows(whole.keys, keys),
                                 SelectRows(whole.values, keys)};
      ExpectSameBits(RunAttention(*this, shape, {part}, 1), SelectRows(expected, rows));
    }
  }
}

TEST_P(AttentionMaskTest, TheRuleMayScaleScores) {
  const AttentionShape shape = {2, 1, 64, 8, 8, {.scale = 0.3f}};
  ExpectAgreesWithTheDefinition(shape, {RandomSequence(shape, 16, 24, 40, 1)});
}

/// WINO (decoding.md §11): a canvas of `canvas` positions whose block of `block` positions begins at `first`, and the
/// block's shadow rows, whose keys stand behind the canvas.
struct Wino {
  int32_t canvas, first, block;
  TestSequence rows, shadow;
};

Wino MakeWino(const AttentionShape& shape, int32_t canvas, int32_t first, int32_t block) {
  Wino wino = {canvas, first, block, RandomSequence(shape, canvas, 0, canvas, 1),
               RandomSequence(shape, block, first, canvas + block, 2)};
  wino.shadow.unseen_key = first;
  std::copy(wino.rows.keys.values.begin(), wino.rows.keys.values.end(), wino.shadow.keys.values.begin());
  std::copy(wino.rows.values.values.begin(), wino.rows.values.values.end(), wino.shadow.values.values.begin());
  return wino;
}

/// Row r of canvas and shadows together, with the mask written out: [canvas + block, canvas + block].
HostMatrix ByExplicitMask(const Wino& wino, int32_t head_size, DType dtype) {
  const int32_t total = wino.canvas + wino.block;
  std::vector<std::vector<bool>> sees(static_cast<size_t>(total), std::vector<bool>(static_cast<size_t>(total), true));
  for (int32_t r = 0; r < wino.canvas; ++r) {
    for (int32_t j = wino.canvas; j < total; ++j) sees[r][j] = false;  // Nobody else sees shadow rows.
  }
  for (int32_t i = 0; i < wino.block; ++i) sees[wino.canvas + i][wino.first + i] = false;
  const HostMatrix k = Rounded(wino.shadow.keys, dtype), v = Rounded(wino.shadow.values, dtype);
  HostMatrix q = Rounded(wino.rows.queries, dtype);
  const HostMatrix shadow_q = Rounded(wino.shadow.queries, dtype);
  q.values.insert(q.values.end(), shadow_q.values.begin(), shadow_q.values.end());
  HostMatrix out(total, head_size);
  for (int32_t r = 0; r < total; ++r) {
    double sum = 0.0;
    std::vector<double> mixed(static_cast<size_t>(head_size));
    for (int32_t j = 0; j < total; ++j) {
      if (!sees[r][j]) continue;
      double dot = 0.0;
      for (int32_t d = 0; d < head_size; ++d) dot += double{q.values[r * head_size + d]} * k.at(j, d);
      const double weight = std::exp(dot / std::sqrt(double{1.0} * head_size));
      sum += weight;
      for (int32_t d = 0; d < head_size; ++d) mixed[d] += weight * v.at(j, d);
    }
    for (int32_t d = 0; d < head_size; ++d) out.at(r, d) = static_cast<float>(mixed[d] / sum);
  }
  return out;
}

TEST_P(AttentionMaskTest, AShadowRowSeesAllButTheRowItStandsFor) {
  for (const int32_t head_size : {24, 64, 128}) {
    SCOPED_TRACE(head_size);
    const AttentionShape shape = {1, 1, head_size, 16};
    const Wino wino = MakeWino(shape, /*canvas=*/100, /*first=*/40, /*block=*/30);
    const HostMatrix actual = RunAttention(*this, shape, {wino.rows, wino.shadow}, 7);
    ExpectNear(actual, ByExplicitMask(wino, head_size, dtype()), RoundingError(dtype()), 5e-6);
    ExpectSequencesDoNotMix(shape, {wino.rows, wino.shadow});
  }
}

// A row whose only key of a tile is the unseen one must not see it, nor lose what it saw before.
TEST_P(AttentionMaskTest, AnUnseenKeyMayBeAloneInItsTile) {
  for (const int32_t head_size : {16, 64}) {
    for (const int32_t unseen : {0, 31, 32, 64, 128}) {
      SCOPED_TRACE(absl::StrCat("hd ", head_size, " unseen ", unseen));
      const AttentionShape shape = {2, 1, head_size, 16};
      TestSequence sequence = RandomSequence(shape, 1, 60, 129, 3);
      sequence.unseen_key = unseen;
      ExpectAgreesWithTheDefinition(shape, {sequence});
    }
  }
}

INSTANTIATE_OPS_TEST(AttentionMaskTest);

}  // namespace
}  // namespace quicksilver
