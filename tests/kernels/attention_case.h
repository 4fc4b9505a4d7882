#pragma once

#include <cstdint>
#include <vector>

#include "tests/kernels/ops_fixture.h"

namespace quicksilver {

/// One sequence of an attention test: its whole past and present, by position.
struct TestSequence {
  int32_t first_position = 0;  ///< Of the rows that run in this step.
  HostMatrix queries;          ///< [rows, heads * hd]
  HostMatrix keys;             ///< [keys, kv_heads * hd]
  HostMatrix values;           ///< [keys, kv_heads * hd]
  int32_t block_length = -1;   ///< Of this sequence; -1: the shape's.
  int32_t unseen_key = -1;     ///< AttentionSegment::unseen_key
};

struct AttentionShape {
  int32_t heads = 1;
  int32_t kv_heads = 1;
  int32_t head_size = 1;
  int32_t page_size = 1;
  int32_t block_length = kBidirectional;
  AttentionRule rule;

  int32_t BlockOf(const TestSequence& s) const { return s.block_length >= 0 ? s.block_length : block_length; }
};

/// `rows` rows from `first_position` on, over `keys` keys, with random content.
TestSequence RandomSequence(const AttentionShape& shape, int32_t rows, int32_t first_position, int32_t keys,
                            uint32_t seed);

/// Runs Attention over all sequences at once; returns the rows of all, in order. The pages lie in an order
/// shuffled by `page_seed`; whatever is not a key of a sequence is NaN.
HostMatrix RunAttention(OpsTestBase& test, const AttentionShape& shape, const std::vector<TestSequence>& sequences,
                        uint32_t page_seed);

/// The same in double, from the definition.
HostMatrix NaiveAttention(const AttentionShape& shape, const std::vector<TestSequence>& sequences, DType dtype);

}  // namespace quicksilver
