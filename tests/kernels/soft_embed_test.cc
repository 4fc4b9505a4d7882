#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/kernels/candidates_case.h"

namespace quicksilver {
namespace {

/// One rank's share of a vocabulary: its rows of the LM head and of the embedding.
struct SoftShard {
  HostMatrix head;
  HostMatrix table;
  VocabularyShard shard;
};

SoftShard RandomShard(int32_t first_id, int64_t ids, int64_t hidden, int32_t vocabulary) {
  return {RandomMatrix(ids, hidden, 100 + first_id, 0.6f),
          RandomMatrix(ids, hidden, 200 + first_id),
          {.first_id = first_id, .vocabulary = vocabulary, .soft_cap = 5.0f}};
}

class SoftEmbedTest : public OpsTest {
 protected:
  class Reference : public OpsTestBase {
    void TestBody() override {}
  };

  void SetUp() override {
    OpsTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    reference_.UseOps(MakeReferenceOps(dtype()));
  }

  /// What every shard contributes, [shards][requests, H].
  static std::vector<HostMatrix> Run(OpsTestBase& test, const std::vector<SoftShard>& shards, const HostMatrix& hidden,
                                     const std::vector<CandidateRequest>& requests, DType table = DType::kF32) {
    std::vector<Candidate> records;
    for (const SoftShard& s : shards) {
      const auto of_shard = RunCandidates(test, hidden, *test.Prepare(s.head), s.shard, requests).candidates;
      records.insert(records.end(), of_shard.begin(), of_shard.end());
    }
    const DeviceArray<Candidate> device_records = test.PutArray(records);
    const DeviceArray<CandidateRequest> device_requests = test.PutArray(requests);
    const auto count = static_cast<int32_t>(requests.size());
    const SoftEmbedBatch batch = {.requests = device_requests.data(),
                                  .count = count,
                                  .records = device_records.data(),
                                  .records_stride = count,
                                  .ranks = static_cast<int32_t>(shards.size())};
    const DeviceMatrix device_hidden = test.Put(hidden);
    std::vector<HostMatrix> sums;
    for (const SoftShard& s : shards) {
      const DeviceMatrix device_table = test.Put(s.table, table), out = test.Space(count, s.table.cols);
      test.ops().SoftEmbed(device_hidden, *test.Prepare(s.head), device_table, s.shard, batch, out);
      sums.push_back(test.Get(out));
    }
    return sums;
  }

  Reference reference_;
};

CandidateRequest At(int32_t row, float temperature) {
  CandidateRequest request;
  request.row = row;
  request.temperature = temperature;
  return request;
}

// In double, from the definition. Numbers are exact in bf16.
TEST_P(SoftEmbedTest, WeighsEmbeddingsByTheTemperedSoftmaxOfCappedLogits) {
  const HostMatrix head(3, 1, {0.0f, 1.0f, 4.0f}), table(3, 2, {1.0f, 0.0f, 0.0f, 1.0f, -2.0f, 0.5f});
  const SoftShard shard = {head, table, {.vocabulary = 3, .soft_cap = 2.0f}};
  double weights[3], total = 0.0;
  for (int v = 0; v < 3; ++v) total += weights[v] = std::exp(2.0 * std::tanh(double{head.at(v, 0)} / 2.0) / 0.5);
  HostMatrix expected(1, 2);
  for (int c = 0; c < 2; ++c) {
    double sum = 0.0;
    for (int v = 0; v < 3; ++v) sum += weights[v] / total * table.at(v, c);
    expected.at(0, c) = static_cast<float>(sum);
  }
  ExpectNear(Run(*this, {shard}, {1, 1, {1.0f}}, {At(0, 0.5f)})[0], expected, 2 * RoundingError(dtype()) + 2e-6, 1e-3);
}

TEST_P(SoftEmbedTest, AgreesWithTheReference) {
  for (const DType table : {DType::kF32, DType::kBf16}) {
    // One id, odd sizes, several panels and tiles of ids.
    for (const auto& [ids, H] : {std::pair<int64_t, int64_t>{1, 8}, {37, 21}, {1300, 40}, {2100, 200}}) {
      SCOPED_TRACE(absl::StrCat(ids, " ids, H=", H));
      const HostMatrix hidden = RandomMatrix(7, H, 3);
      const std::vector<SoftShard> shards = {RandomShard(0, ids, H, static_cast<int32_t>(ids))};
      const std::vector<CandidateRequest> requests = {At(3, 0.8f), At(0, 0.4f), At(-1, 0.0f), At(6, 0.0f), At(2, 2.0f)};
      // A probability may round the other way; with bf16 its logit was summed in another order, too.
      ExpectNear(Run(*this, shards, hidden, requests, table)[0], Run(reference_, shards, hidden, requests, table)[0],
                 8 * RoundingError(dtype()) + 1e-5, dtype() == DType::kF32 ? 2e-5 : 1e-2);
    }
  }
}

TEST_P(SoftEmbedTest, ShardsAddUpToTheWhole) {
  const int64_t H = 24;
  const HostMatrix hidden = RandomMatrix(5, H, 3);
  const SoftShard whole = RandomShard(0, 90, H, 85);
  const std::vector<CandidateRequest> requests = {At(4, 0.7f), At(1, 0.0f), At(0, 0.5f)};
  const HostMatrix expected = Run(*this, {whole}, hidden, requests)[0];
  std::vector<SoftShard> parts;
  for (const int32_t first : {0, 30, 60}) {
    std::vector<int32_t> rows;
    for (int32_t i = first; i < first + 30; ++i) rows.push_back(i);
    parts.push_back({SelectRows(whole.head, rows), SelectRows(whole.table, rows), whole.shard});
    parts.back().shard.first_id = first;
  }
  HostMatrix sum(3, H);
  for (const HostMatrix& part : Run(*this, parts, hidden, requests)) {
    for (size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += part.values[i];
  }
  ExpectNear(sum, expected, 4 * RoundingError(dtype()) + 1e-5, dtype() == DType::kF32 ? 1e-5 : 2e-2);
}

TEST_P(SoftEmbedTest, WithoutTemperatureItIsTheEmbeddingOfTheBestId) {
  const int64_t H = 16;
  const SoftShard shard = RandomShard(0, 50, H, 50);
  const HostMatrix hidden = RandomMatrix(3, H, 3);
  const std::vector<CandidateRequest> requests = {At(0, 0.0f), At(2, 0.0f)};
  const auto candidates = RunCandidates(*this, hidden, *Prepare(shard.head), shard.shard, requests).candidates;
  ExpectSameBits(Run(*this, {shard}, hidden, requests)[0],
                 Rounded(SelectRows(shard.table, {candidates[0].best_id, candidates[1].best_id}), dtype()));
}

TEST_P(SoftEmbedTest, PaddingGivesZerosAndRowsDoNotMix) {
  const int64_t H = 40;
  const std::vector<SoftShard> shards = {RandomShard(0, 700, H, 690)};
  const HostMatrix hidden = RandomMatrix(21, H, 3);
  std::vector<CandidateRequest> requests;
  for (int32_t i = 0; i < 21; ++i) requests.push_back(At(i % 5 == 4 ? -1 : i, 0.4f + 0.01f * static_cast<float>(i)));
  const HostMatrix together = Run(*this, shards, hidden, requests)[0];
  for (int32_t i = 0; i < 21; ++i) {
    if (requests[i].row < 0) {
      ExpectSameBits(SelectRows(together, {i}), HostMatrix(1, H));
      continue;
    }
    const HostMatrix alone = SelectRows(hidden, {i});
    ExpectSameBits(Run(*this, shards, alone, {At(0, requests[i].temperature)})[0], SelectRows(together, {i}));
  }
}

INSTANTIATE_OPS_TEST(SoftEmbedTest);

}  // namespace
}  // namespace quicksilver
