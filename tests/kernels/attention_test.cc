#include "absl/strings/str_cat.h"
#include "tests/kernels/attention_case.h"

namespace quicksilver {
namespace {

class AttentionTest : public OpsTest {
 protected:
  void ExpectAgreesWithTheDefinition(const AttentionShape& shape, const std::vector<TestSequence>& sequences) {
    SCOPED_TRACE(absl::StrCat("heads ", shape.heads, "/", shape.kv_heads, " hd ", shape.head_size, " page ",
                              shape.page_size, " block ", shape.block_length));
    const HostMatrix actual = RunAttention(*this, shape, sequences, /*page_seed=*/7);
    // Means of values of size 1: float sums of some hundred weights, and one rounding.
    ExpectNear(actual, NaiveAttention(shape, sequences, dtype()), RoundingError(dtype()), 5e-6);
  }
};

// A short and a long past, a prefill from 0, a lone row; none of them a multiple of the tiles inside.
std::vector<TestSequence> Ragged(const AttentionShape& shape) {
  return {RandomSequence(shape, 8, 32, 40, 1), RandomSequence(shape, 48, 0, 48, 2),
          RandomSequence(shape, 1, 100, 104, 3), RandomSequence(shape, 8, 96, 104, 4),
          RandomSequence(shape, 3, 0, 8, 5)};
}

TEST_P(AttentionTest, BlockCausalMask) {
  for (const int32_t block_length : {1, 4, 8}) {
    const AttentionShape shape = {4, 2, 16, 8, block_length};
    ExpectAgreesWithTheDefinition(shape, Ragged(shape));
  }
}

TEST_P(AttentionTest, BidirectionalMask) {
  const AttentionShape shape = {4, 2, 16, 16, kBidirectional};
  ExpectAgreesWithTheDefinition(shape, Ragged(shape));
}

TEST_P(AttentionTest, AnyHeadSizeAndGrouping) {
  for (const AttentionShape& shape :
       {AttentionShape{1, 1, 2, 8, 8}, AttentionShape{6, 2, 32, 8, 8}, AttentionShape{5, 1, 18, 8, 8},
        AttentionShape{8, 8, 64, 8, 8}, AttentionShape{16, 2, 80, 8, 8}, AttentionShape{40, 1, 128, 8, 8},
        AttentionShape{2, 1, 512, 8, 8}}) {
    ExpectAgreesWithTheDefinition(shape, {RandomSequence(shape, 16, 24, 40, 1), RandomSequence(shape, 8, 0, 8, 2)});
  }
}

TEST_P(AttentionTest, AnyPageSize) {
  for (const int32_t page_size : {4, 12, 64, 256}) {
    const AttentionShape shape = {2, 1, 8, page_size, 4};
    ExpectAgreesWithTheDefinition(shape, {RandomSequence(shape, 8, 72, 80, 1), RandomSequence(shape, 4, 0, 4, 2)});
  }
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  const AttentionShape shape = {2, 1, 16, 8, 8};
  TestSequence sequence = RandomSequence(shape, 8, 40, 48, 1);
  for (float& value : sequence.queries.values) value *= 30.0f;
  for (float& value : sequence.keys.values) value *= 3.0f;
  const HostMatrix actual = RunAttention(*this, shape, {sequence}, 7);
  // A score of some hundreds carries an error of some 1e-5, which weights show in full.
  ExpectNear(actual, NaiveAttention(shape, {sequence}, dtype()), RoundingError(dtype()), 3e-4);
}

TEST_P(AttentionTest, NothingToDo) {
  const AttentionShape shape = {2, 1, 8, 8, 8};
  EXPECT_EQ(RunAttention(*this, shape, {}, 7).rows, 0);
}

INSTANTIATE_OPS_TEST(AttentionTest);

}  // namespace
}  // namespace quicksilver
