#include <algorithm>
#include <functional>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/kernels/attention_case.h"
#include "tests/kernels/candidates_case.h"
#include "tests/kernels/rotate_case.h"

namespace quicksilver {
namespace {

// The bits of a row depend on that row alone: what makes a request's output independent of the requests beside it.
class RowInvarianceTest : public OpsTest {
 protected:
  /// `run` maps rows [N, in] to rows [N, out]. Runs all of `x` at once, then each row alone, then random choices of
  /// rows in random order, and expects the same bits for the same row.
  void ExpectRowsDoNotMix(const HostMatrix& x, const std::function<HostMatrix(const HostMatrix&)>& run) {
    const HostMatrix together = run(x);
    for (int32_t n = 0; n < x.rows; ++n) ExpectSameBits(run(SelectRows(x, {n})), SelectRows(together, {n}));
    std::mt19937 generator(11);
    std::vector<int32_t> rows(static_cast<size_t>(x.rows));
    std::iota(rows.begin(), rows.end(), 0);
    for (int trial = 0; trial < 12; ++trial) {
      std::shuffle(rows.begin(), rows.end(), generator);
      const size_t count = 1 + generator() % rows.size();
      const std::vector<int32_t> some(rows.begin(), rows.begin() + count);
      ExpectSameBits(run(SelectRows(x, some)), SelectRows(together, some));
    }
  }
};

TEST_P(RowInvarianceTest, Gemm) {
  // Below, at and above a panel of columns; odd depths; a long sum.
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{192, 576}, {63, 65}, {1024, 300}, {5632, 64}}) {
    SCOPED_TRACE(absl::StrCat(in, " to ", out));
    const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(out, in, 1));
    ExpectRowsDoNotMix(RandomMatrix(41, in, 2), [&](const HostMatrix& x) {
      const DeviceMatrix device_x = Put(x), result = Space(x.rows, weight->out_features());
      ops().Gemm(device_x, *weight, result);
      return Get(result);
    });
  }
}

TEST_P(RowInvarianceTest, GemmDoesNotDependOnTheStride) {
  const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(96, 200, 1));
  const HostMatrix x = RandomMatrix(19, 200, 2);
  HostMatrix first;
  for (const int64_t gap : {0, 1, 8, 64}) {
    const DeviceMatrix device_x = Put(x, dtype(), gap), result = Space(x.rows, 96);
    ops().Gemm(device_x, *weight, result);
    if (gap == 0) first = Get(result);
    ExpectSameBits(Get(result), first);
  }
}

TEST_P(RowInvarianceTest, ANanRowSpoilsNoOther) {
  const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(70, 48, 1));
  const HostMatrix x = RandomMatrix(10, 48, 2);
  HostMatrix spoiled = x;
  for (int64_t c = 0; c < 48; ++c) spoiled.at(4, c) = std::numeric_limits<float>::quiet_NaN();
  const auto run = [&](const HostMatrix& m) {
    const DeviceMatrix device_x = Put(m), result = Space(m.rows, 70);
    ops().Gemm(device_x, *weight, result);
    return Get(result);
  };
  const std::vector<int32_t> others = {0, 1, 2, 3, 5, 6, 7, 8, 9};
  ExpectSameBits(SelectRows(run(spoiled), others), SelectRows(run(x), others));
}

TEST_P(RowInvarianceTest, RowByRowOperations) {
  const int64_t H = 190;
  const DeviceArray<float> gain = PutArray(RandomMatrix(1, H, 5).values);
  const HostMatrix x = RandomMatrix(37, H, 1);
  ExpectRowsDoNotMix(x, [&](const HostMatrix& rows) {
    const DeviceMatrix m = Put(rows), out = Space(rows.rows, H);
    ops().RmsNorm(m, gain.data(), 1e-6f, out);
    return Get(out);
  });
  ExpectRowsDoNotMix(x, [&](const HostMatrix& rows) {
    const DeviceMatrix m = Put(rows), y = Put(rows), out = Space(rows.rows, H);
    ops().AddBias(gain.data(), m);
    ops().AddRmsNorm(y, gain.data(), 1e-6f, m, out);
    return Get(out);
  });
  ExpectRowsDoNotMix(x, [&](const HostMatrix& rows) {
    const DeviceMatrix m = Put(rows), out = Space(rows.rows, H / 2);
    ops().GatedMul(Activation::kSilu, m, out);
    return Get(out);
  });
}

TEST_P(RowInvarianceTest, RotationDependsOnThePositionAlone) {
  RotateCase rotate = {.heads = 2, .kv_heads = 1, .head_size = 48};
  rotate.q_gain = RandomMatrix(1, 48, 3).values;
  rotate.k_gain = RandomMatrix(1, 48, 4).values;
  // The last column carries the position, so that it travels with its row.
  HostMatrix x = RandomMatrix(20, rotate.cols() + 1, 1);
  for (int64_t n = 0; n < x.rows; ++n) x.at(n, rotate.cols()) = static_cast<float>(n * n * 7);
  ExpectRowsDoNotMix(x, [&](const HostMatrix& rows) {
    HostMatrix qkv(rows.rows, rotate.cols());
    std::vector<int32_t> positions, slots;
    for (int64_t n = 0; n < rows.rows; ++n) {
      for (int64_t c = 0; c < rotate.cols(); ++c) qkv.at(n, c) = rows.at(n, c);
      positions.push_back(static_cast<int32_t>(rows.at(n, rotate.cols())));
      slots.push_back(static_cast<int32_t>(n));
    }
    return RunRotate(*this, rotate, qkv, positions, slots).qkv;
  });
}

TEST_P(RowInvarianceTest, AttentionOfASequenceIgnoresTheOthers) {
  for (const int32_t block_length : {8, kBidirectional}) {
    const AttentionShape shape = {6, 2, 20, 8, block_length};
    const std::vector<TestSequence> sequences = {
        RandomSequence(shape, 8, 72, 80, 1), RandomSequence(shape, 64, 0, 64, 2), RandomSequence(shape, 3, 8, 16, 3),
        RandomSequence(shape, 1, 200, 208, 4)};
    const HostMatrix together = RunAttention(*this, shape, sequences, /*page_seed=*/1);
    int32_t first = 0;
    for (const TestSequence& sequence : sequences) {
      std::vector<int32_t> rows(static_cast<size_t>(sequence.queries.rows));
      std::iota(rows.begin(), rows.end(), first);
      first += static_cast<int32_t>(rows.size());
      ExpectSameBits(RunAttention(*this, shape, {sequence}, /*page_seed=*/2), SelectRows(together, rows));
    }
    const std::vector<TestSequence> reversed(sequences.rbegin(), sequences.rend());
    const HostMatrix backwards = RunAttention(*this, shape, reversed, /*page_seed=*/3);
    std::vector<int32_t> order = {75};
    for (const auto& [from, count] : {std::pair{72, 3}, {8, 64}, {0, 8}}) {
      for (int32_t i = 0; i < count; ++i) order.push_back(from + i);
    }
    ExpectSameBits(backwards, SelectRows(together, order));
  }
}

// A prefill may be cut at any block, and the page size is a setting: neither may show.
TEST_P(RowInvarianceTest, AttentionOfAPrefillDoesNotDependOnTheCutsOrPages) {
  const int32_t length = 120;
  AttentionShape shape = {4, 2, 32, 16, 8};
  const TestSequence whole = RandomSequence(shape, length, 0, length, 1);
  const HostMatrix expected = RunAttention(*this, shape, {whole}, 1);
  for (const auto& [cut, page_size] : {std::pair{8, 8}, {16, 16}, {40, 24}, {112, 64}}) {
    SCOPED_TRACE(absl::StrCat("cut every ", cut, " rows, pages of ", page_size));
    shape.page_size = page_size;
    for (int32_t first = 0; first < length; first += cut) {
      const int32_t end = std::min(length, first + cut);
      std::vector<int32_t> rows(static_cast<size_t>(end - first)), keys(static_cast<size_t>(end));
      std::iota(rows.begin(), rows.end(), first);
      std::iota(keys.begin(), keys.end(), 0);
      const TestSequence part = {first, SelectRows(whole.queries, rows), SelectRows(whole.keys, keys),
                                 SelectRows(whole.values, keys)};
      ExpectSameBits(RunAttention(*this, shape, {part}, first), SelectRows(expected, rows));
    }
  }
}

// What a later block holds, even garbage, must not reach an earlier one through the tile they share.
TEST_P(RowInvarianceTest, AttentionIgnoresHiddenKeys) {
  const AttentionShape shape = {2, 1, 16, 8, 8};
  TestSequence sequence = RandomSequence(shape, 16, 0, 16, 1);
  const HostMatrix expected = RunAttention(*this, shape, {sequence}, 1);
  for (int64_t j = 8; j < 16; ++j) {
    for (int64_t c = 0; c < 16; ++c)
      sequence.keys.at(j, c) = sequence.values.at(j, c) = std::numeric_limits<float>::quiet_NaN();
  }
  const std::vector<int32_t> first_block = {0, 1, 2, 3, 4, 5, 6, 7};
  ExpectSameBits(SelectRows(RunAttention(*this, shape, {sequence}, 1), first_block), SelectRows(expected, first_block));
}

/// The numbers of a candidate as a row.
HostMatrix AsMatrix(const std::vector<Candidate>& candidates) {
  constexpr int64_t kFields = 13;
  HostMatrix m(static_cast<int64_t>(candidates.size()), kFields);
  for (size_t r = 0; r < candidates.size(); ++r) {
    const Candidate& c = candidates[r];
    const float high = static_cast<float>(c.sampled_score);  // A double is two floats here.
    const float fields[] = {static_cast<float>(c.best_id),
                            c.best_logit,
                            c.second_logit,
                            static_cast<float>(c.log_sum_exp),
                            static_cast<float>(c.mean_logit),
                            static_cast<float>(c.sampled_id),
                            c.sampled_logit,
                            static_cast<float>(c.tempered_log_sum_exp),
                            high,
                            static_cast<float>(c.sampled_score - high),
                            static_cast<float>(c.tempered_mean_logit),
                            static_cast<float>(c.mean_previous),
                            c.asked_logit};
    static_assert(std::size(fields) == kFields);
    std::copy(std::begin(fields), std::end(fields), m.values.begin() + static_cast<int64_t>(r) * kFields);
  }
  return m;
}

TEST_P(RowInvarianceTest, Candidates) {
  const int64_t H = 64, ids = 1100;
  const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(ids, H, 1, 0.3f));
  CandidateTables tables;
  for (int32_t i = 0; i < 60; ++i) tables.biases.push_back({100 + 18 * i, 0.125f * static_cast<float>(i % 9 - 4)});
  const VocabularyShard shard = {.first_id = 100, .vocabulary = 1190, .mask_id = 150};
  // Two halves of a row: the conditional and the unconditional hidden state.
  for (const bool guided : {false, true}) {
    ExpectRowsDoNotMix(RandomMatrix(21, 2 * H, 2), [&](const HostMatrix& rows) {
      HostMatrix hidden(2 * rows.rows, H);
      std::vector<CandidateRequest> requests;
      std::vector<float> history;
      tables.history = &history;
      for (int32_t n = 0; n < rows.rows; ++n) {
        for (int64_t h = 0; h < H; ++h) {
          hidden.at(2 * n, h) = rows.at(n, h), hidden.at(2 * n + 1, h) = rows.at(n, H + h);
        }
        const uint32_t place = BitsOfFloat(rows.at(n, 0));  // Belongs to the row, wherever it goes.
        requests.push_back({.row = 2 * n,
                            .guide_row = guided && place % 2 == 0 ? 2 * n + 1 : -1,
                            .guidance = 1.0f,
                            .temperature = place % 3 == 0 ? 0.0f : 0.7f,
                            .place = {.seed = 1, .position = place},
                            .first_bias = static_cast<int32_t>(place % 40),
                            .bias_count = static_cast<int32_t>(place % 20),
                            .asked_id = static_cast<int32_t>(100 + place % 1000),
                            .history_slot = n,
                            .history_valid = 1});
        const std::vector<float> before = RandomMatrix(1, ids, place).values;
        history.insert(history.end(), before.begin(), before.end());
      }
      return AsMatrix(RunCandidates(*this, hidden, *weight, shard, requests, 0, tables).candidates);
    });
  }
}

INSTANTIATE_OPS_TEST(RowInvarianceTest);
INSTANTIATE_TEST_SUITE_P(Coarse, RowInvarianceTest, ::testing::ValuesIn(CoarseOpsUnderTest()),
                         [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace quicksilver
