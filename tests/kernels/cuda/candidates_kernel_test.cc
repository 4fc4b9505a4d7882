#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/kernels/cuda/candidates_run.h"

namespace quicksilver {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The kernels on logits that are given.
class CandidatesKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
  }

  static void ExpectAgreement(const CandidatesCase& c, const CandidatesOutput& actual,
                              const CandidatesOutput& expected) {
    for (size_t r = 0; r < c.requests.size(); ++r) {
      SCOPED_TRACE(absl::StrCat("request ", r));
      const Candidate &a = actual.candidates[r], &e = expected.candidates[r];
      ASSERT_EQ(a.finite, e.finite);
      if (e.finite == 0) continue;
      EXPECT_EQ(a.best_id, e.best_id);
      EXPECT_EQ(a.best_logit, e.best_logit);
      EXPECT_EQ(a.second_logit, e.second_logit);
      EXPECT_EQ(a.sampled_id, e.sampled_id);
      EXPECT_EQ(a.sampled_logit, e.sampled_logit);
      EXPECT_EQ(a.sampled_score, e.sampled_score);
      ExpectNear(a.log_sum_exp, e.log_sum_exp, 4e-6);  // Float sums of approximate exponentials.
      ExpectNear(a.tempered_log_sum_exp, e.tempered_log_sum_exp, 2e-5);
      ExpectNear(a.mean_logit, e.mean_logit, 1e-5 + 2e-6 * std::abs(e.mean_logit));
      ExpectNear(a.tempered_mean_logit, e.tempered_mean_logit, 5e-5 + 2e-6 * std::abs(e.tempered_mean_logit));
      ExpectNear(a.mean_previous, e.mean_previous, 2e-5 + 2e-6 * std::abs(e.mean_previous));
      EXPECT_EQ(a.asked_logit, e.asked_logit);
      for (int32_t k = 0; k < c.top_count; ++k) {
        const size_t i = r * static_cast<size_t>(c.top_count) + static_cast<size_t>(k);
        ASSERT_EQ(actual.top[i].id, expected.top[i].id) << "place " << k;
        ASSERT_EQ(actual.top[i].logit, expected.top[i].logit) << "place " << k;
      }
    }
  }

  /// Of the ids that exist.
  static void ExpectSameHistory(const CandidatesCase& c, const CandidatesOutput& actual,
                                const CandidatesOutput& expected) {
    for (size_t i = 0; i < c.history.size(); ++i) {
      const auto column = static_cast<int64_t>(i) % c.logits.cols;
      if (column >= c.shard.vocabulary - c.shard.first_id) continue;
      ASSERT_EQ(actual.history[i], expected.history[i]) << "slot " << static_cast<int64_t>(i) / c.logits.cols;
    }
  }

  static void ExpectNear(double actual, double expected, double tolerance) {
    if (std::isinf(expected)) {
      EXPECT_EQ(actual, expected);
    } else {
      EXPECT_NEAR(actual, expected, tolerance);
    }
  }
};

TEST_F(CandidatesKernelTest, AgreesWithTheReferenceOnRaggedSizes) {
  struct Shape {
    int32_t rows, columns, first_id, vocabulary, requests, top_count;
    size_t tile_bytes;
  };
  for (const Shape& s : {Shape{1, 1, 0, 1, 1, 1, kOnePartTiles}, Shape{1, 2, 5, 7, 2, 0, kLogitsTileBytes},
                         Shape{3, 1023, 0, 1023, 5, 7, kLogitsTileBytes}, Shape{2, 1024, 100, 1124, 3, 3, 1},
                         Shape{5, 1025, 0, 1025, 9, 40, kOnePartTiles}, Shape{0, 900, 0, 900, 3, 2, kOnePartTiles},
                         Shape{7, 3001, 4000, 6900, 20, 0, size_t{7} * 8192}, Shape{70, 2050, 0, 2049, 41, 0, 1},
                         Shape{4, 6000, 11, 6011, 12, 256, size_t{4} * 8192}}) {
    SCOPED_TRACE(absl::StrCat(s.rows, " rows, ", s.columns, " columns, ", s.requests, " requests"));
    const int32_t ids = std::min(s.columns, s.vocabulary - s.first_id);
    CandidatesCase c = {.logits = RandomMatrix(s.rows, s.columns, 11, 4.0f),
                        .shard = {s.first_id, s.vocabulary, s.columns > 2 ? s.first_id + ids * 2 / 3 : -1},
                        .requests = MixedRequests(s.requests, s.rows, s.first_id, ids),
                        .top_count = s.top_count};
    ExpectAgreement(c, RunCandidatesOn(c, s.tile_bytes), CandidatesReference(c));
    AddTables(c);
    const CandidatesOutput actual = RunCandidatesOn(c, s.tile_bytes), expected = CandidatesReference(c);
    ExpectAgreement(c, actual, expected);
    ExpectSameHistory(c, actual, expected);
  }
}

TEST_F(CandidatesKernelTest, NeitherTilesNorNeighboursChangeABit) {
  const int32_t rows = 6, columns = 5300;
  CandidatesCase c = {.logits = RandomMatrix(rows, columns, 3, 3.0f),
                      .shard = {50, 50 + columns, 2900},
                      .requests = MixedRequests(13, rows, 50, columns),
                      .top_count = 31};
  AddTables(c);
  const CandidatesOutput expected = RunCandidatesOn(c);
  for (const size_t columns_of_tile : {1024, 2048, 3072, 5120}) {
    EXPECT_TRUE(SameBits(RunCandidatesOn(c, columns_of_tile * rows * sizeof(float)), expected))
        << columns_of_tile << " columns";
  }
  std::vector<size_t> order(c.requests.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937 generator(5);
  for (int trial = 0; trial < 4; ++trial) {
    std::shuffle(order.begin(), order.end(), generator);
    CandidatesCase some = c;
    CandidatesOutput wanted;
    some.requests.clear();
    for (size_t i = 0; i < 1 + generator() % order.size(); ++i) {
      some.requests.push_back(c.requests[order[i]]);
      wanted.candidates.push_back(expected.candidates[order[i]]);
      const auto list = expected.top.begin() + static_cast<int64_t>(order[i]) * c.top_count;
      wanted.top.insert(wanted.top.end(), list, list + c.top_count);
    }
    EXPECT_TRUE(SameBits(RunCandidatesOn(some, trial % 2 == 0 ? kOnePartTiles : kLogitsTileBytes), wanted));
  }
}

TEST_F(CandidatesKernelTest, TiesGoToTheSmallestIdAcrossPartsAndTiles) {
  CandidatesCase c = {.logits = HostMatrix(1, 5000), .shard = {.vocabulary = 5000}, .requests = {{}}, .top_count = 8};
  std::fill(c.logits.values.begin(), c.logits.values.end(), -1.0f);
  for (const int32_t id : {4999, 4096, 1030, 1029, 2047}) c.logits.at(0, id) = 4.0f;
  for (const size_t tile_bytes : {kOnePartTiles, size_t{8192}, kLogitsTileBytes}) {
    const CandidatesOutput results = RunCandidatesOn(c, tile_bytes);
    EXPECT_EQ(results.candidates[0].best_id, 1029);
    EXPECT_EQ(results.candidates[0].second_logit, 4.0f);
    const int32_t expected[] = {1029, 1030, 2047, 4096, 4999, 0, 1, 2};
    for (size_t k = 0; k < 8; ++k) EXPECT_EQ(results.top[k].id, expected[k]);
  }
}

// Scores tie where a low temperature leaves few digits for the noise, or none.
TEST_F(CandidatesKernelTest, TiedScoresGoToTheSmallestId) {
  CandidatesCase c = {.logits = HostMatrix(1, 4000), .shard = {.vocabulary = 4000}, .requests = {}};
  for (int32_t id = 1776; id < 4000; id += 7) c.logits.at(0, id) = 7.0f;
  for (const float temperature : {1e-13f, 1e-14f, 1e-15f, 1e-16f, 1e-30f, 1e-38f}) {
    for (uint32_t position = 0; position < 8; ++position) {
      c.requests.push_back({.temperature = temperature, .place = {.seed = 2, .position = position}});
    }
  }
  const CandidatesOutput results = RunCandidatesOn(c, kOnePartTiles), expected = CandidatesReference(c);
  for (size_t r = 0; r < c.requests.size(); ++r) {
    EXPECT_EQ(results.candidates[r].sampled_id, expected.candidates[r].sampled_id);
    EXPECT_EQ(results.candidates[r].sampled_score, expected.candidates[r].sampled_score);
  }
  EXPECT_EQ(results.candidates.back().sampled_id, 1776);
}

TEST_F(CandidatesKernelTest, SamplesAreThoseOfDrawingForEveryId) {
  // Flat, steep, and with few ids far above the rest; hot, cold and in between.
  CandidatesCase c = {.logits = RandomMatrix(4, 3500, 9, 1.0f), .shard = {.vocabulary = 3500}, .requests = {}};
  for (int32_t id = 0; id < 3500; ++id) {
    c.logits.at(0, id) = 1.5f;
    c.logits.at(1, id) *= 12.0f;
    if (id % 700 == 3) c.logits.at(2, id) += 15.0f;
    c.logits.at(3, id) = 0.01f * static_cast<float>(id);
  }
  for (int32_t r = 0; r < 48; ++r) {
    const float temperatures[] = {1.0f, 0.3f, 0.05f, 20.0f};
    c.requests.push_back({.row = r % 4,
                          .temperature = temperatures[r / 4 % 4],
                          .place = {.seed = 77, .position = static_cast<uint32_t>(r)}});
  }
  // Four ids share a draw's upper bits; a shard may begin with any of them.
  for (const int32_t first_id : {0, 4097, 2, 1023}) {
    c.shard = {.first_id = first_id, .vocabulary = first_id + 3500};
    const CandidatesOutput expected = CandidatesReference(c);
    ExpectAgreement(c, RunCandidatesOn(c), expected);
    ExpectAgreement(c, RunCandidatesOn(c, kOnePartTiles), expected);
  }
}

TEST_F(CandidatesKernelTest, WhatIsNotFiniteIsReportedForItsRowAlone) {
  for (const float bad : {kNan, kInfinity, -kNan}) {
    CandidatesCase c = {
        .logits = RandomMatrix(3, 2500, 1, 2.0f),
        .shard = {.vocabulary = 2490, .mask_id = 1500},
        .requests = {{.row = 0}, {.row = 1, .temperature = 1.0f}, {.row = 2}, {.row = 0, .guide_row = 1}},
        .top_count = 20};
    const CandidatesOutput clean = RunCandidatesOn(c);
    const auto expect_row_1_alone = [&](const CandidatesOutput& results, bool is_bad) {
      for (const size_t r : {0, 2}) {
        EXPECT_TRUE(SameBits(results.candidates[r], clean.candidates[r]));
        EXPECT_EQ(std::memcmp(&results.top[r * 20], &clean.top[r * 20], 20 * sizeof(TopLogit)), 0);
      }
      for (const size_t r : {1, 3}) EXPECT_EQ(results.candidates[r].finite, is_bad ? 0 : 1);
    };
    for (const int64_t id : {int64_t{0}, int64_t{1027}, int64_t{1500}, int64_t{2489}}) {
      CandidatesCase spoiled = c;
      spoiled.logits.at(1, id) = bad;
      expect_row_1_alone(RunCandidatesOn(spoiled, kOnePartTiles), true);
    }
    CandidatesCase spoiled = c;
    spoiled.logits.at(1, 2490) = spoiled.logits.at(1, 2499) = bad;  // Padding of the vocabulary.
    expect_row_1_alone(RunCandidatesOn(spoiled), false);
    for (CandidateRequest& request : spoiled.requests) request.suppressed_id = 7;
    spoiled.logits.at(1, 7) = bad;
    EXPECT_EQ(RunCandidatesOn(spoiled).candidates[1].finite, 1);
  }
}

TEST_F(CandidatesKernelTest, MinusInfinityWeighsNothing) {
  CandidatesCase c = {.logits = HostMatrix(3, 3100), .shard = {.vocabulary = 3100, .mask_id = 0}, .requests = {}};
  std::fill(c.logits.values.begin(), c.logits.values.end(), -kInfinity);
  for (const int32_t id : {2, 2050, 3099}) c.logits.at(1, id) = 1.0f;
  for (int32_t id = 1500; id < 3100; id += 3) c.logits.at(2, id) = 0.001f * static_cast<float>(id);
  for (const int32_t row : {0, 1, 2}) {
    for (const float temperature : {0.0f, 0.5f}) c.requests.push_back({.row = row, .temperature = temperature});
  }
  c.top_count = 5;
  const CandidatesOutput results = RunCandidatesOn(c, kOnePartTiles);
  ExpectAgreement(c, results, CandidatesReference(c));
  EXPECT_EQ(results.candidates[0].best_id, 1);
  EXPECT_NEAR(results.candidates[2].log_sum_exp, 1.0 + std::log(3.0), 1e-6);
}

// 1 - p of a sure token is read from log_sum_exp - z.
TEST_F(CandidatesKernelTest, ASureTokenKeepsTheDigitsOfItsDoubt) {
  CandidatesCase c = {.logits = HostMatrix(1, 5000), .shard = {.vocabulary = 5000}, .requests = {{}}};
  for (const int32_t sure : {0, 2222, 4999}) {
    c.logits = HostMatrix(1, 5000);
    c.logits.at(0, sure) = 25.0f;
    const double expected = std::log1p(4999.0 * std::exp(-25.0));
    EXPECT_NEAR(RunCandidatesOn(c).candidates[0].log_sum_exp - 25.0, expected, 1e-5 * expected);
  }
}

TEST_F(CandidatesKernelTest, TopListsAreExactWhateverTheOrderOfTheLogits) {
  // Each row asks for more sorting than the one before: descending, random with ties, equal, ascending.
  const int32_t columns = 9001;
  CandidatesCase c = {
      .logits = HostMatrix(4, columns), .shard = {.vocabulary = columns, .mask_id = 8999}, .requests = {}};
  const HostMatrix random = RandomMatrix(1, columns, 4, 2.0f);
  for (int32_t id = 0; id < columns; ++id) {
    c.logits.at(0, id) = -0.5f * static_cast<float>(id);
    c.logits.at(1, id) = std::round(8.0f * random.at(0, id)) * (id % 2 == 0 ? 0.125f : -0.125f);
    c.logits.at(2, id) = id % 3 == 0 ? 0.0f : -0.0f;
    c.logits.at(3, id) = 0.5f * static_cast<float>(id);
  }
  for (int32_t r = 0; r < 4; ++r) c.requests.push_back({.row = r, .suppressed_id = 5});
  for (const int32_t top_count : {1, 100, 256}) {
    c.top_count = top_count;
    const CandidatesOutput expected = CandidatesReference(c);
    for (const size_t tile_columns : {1024, 2048, 4096, 10240}) {
      SCOPED_TRACE(absl::StrCat(top_count, " of tiles of ", tile_columns));
      ExpectAgreement(c, RunCandidatesOn(c, tile_columns * 4 * sizeof(float)), expected);
    }
  }
}

TEST_F(CandidatesKernelTest, AShardWithoutRealIdsNeedsNoProduct) {
  const DeviceCopy<CandidateRequest> requests{{{.temperature = 1.0f}, {.row = -1}}};
  const DeviceCopy<Candidate> out{std::vector<Candidate>(2)};
  const DeviceCopy<TopLogit> top{std::vector<TopLogit>(6)};
  const CandidatesArguments arguments = {.rows = 4,
                                         .columns = 512,
                                         .shard = {.first_id = 1024, .vocabulary = 1000},
                                         .batch = {.requests = requests.data(), .count = 2},
                                         .top_count = 3,
                                         .out = out.data(),
                                         .top = top.data()};
  const DeviceCopy<uint8_t> workspace{std::vector<uint8_t>(CandidatesWorkspaceBytes(arguments))};
  const auto fail = [](int64_t, Matrix) { return cudaErrorUnknown; };
  ASSERT_EQ(RunCandidates(arguments, fail, workspace.data(), nullptr), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(nullptr), cudaSuccess);
  for (const Candidate& c : out.Get()) {
    EXPECT_EQ(c.best_id, -1);
    EXPECT_EQ(c.sampled_id, -1);
    EXPECT_EQ(c.log_sum_exp, -kInfinity);
    EXPECT_EQ(c.finite, 1);
  }
  for (const TopLogit& t : top.Get()) EXPECT_EQ(t.id, -1);
}

TEST_F(CandidatesKernelTest, TheProductsErrorComesBack) {
  const DeviceCopy<CandidateRequest> requests{{{}}};
  const DeviceCopy<Candidate> out{std::vector<Candidate>(1)};
  const CandidatesArguments arguments = {.rows = 1,
                                         .columns = 9000,
                                         .shard = {.vocabulary = 9000},
                                         .batch = {.requests = requests.data(), .count = 1},
                                         .out = out.data()};
  const DeviceCopy<uint8_t> workspace{std::vector<uint8_t>(CandidatesWorkspaceBytes(arguments))};
  int products = 0;
  const auto fail = [&](int64_t, Matrix) { return ++products == 2 ? cudaErrorNotSupported : cudaSuccess; };
  EXPECT_EQ(RunCandidates(arguments, fail, workspace.data(), nullptr, kOnePartTiles), cudaErrorNotSupported);
  EXPECT_EQ(products, 2);
}

TEST_F(CandidatesKernelTest, TilesCoverTheRealIdsOnceAndFewTimes) {
  struct Shape {
    int64_t rows, columns;
    int32_t vocabulary;
    size_t products;
  };
  // Batch 1 needs one product; 2,048 rows one per 4,096 ids.
  for (const Shape& s :
       {Shape{32, 126464, 126464, 1}, Shape{2048, 152064, 152000, 38}, Shape{1, 7, 7, 1}, Shape{9000, 5000, 4097, 5}}) {
    const DeviceCopy<CandidateRequest> requests{{{.row = -1}}};
    const DeviceCopy<Candidate> out{std::vector<Candidate>(1)};
    const CandidatesArguments arguments = {.rows = s.rows,
                                           .columns = s.columns,
                                           .shard = {.vocabulary = s.vocabulary},
                                           .batch = {.requests = requests.data(), .count = 1},
                                           .out = out.data()};
    const size_t bytes = CandidatesWorkspaceBytes(arguments);
    const DeviceCopy<uint8_t> workspace{std::vector<uint8_t>(bytes)};
    size_t products = 0;
    int64_t next = 0;
    const auto product = [&](int64_t first, Matrix tile) {
      EXPECT_EQ(first, next);
      EXPECT_EQ(tile.rows, s.rows);
      EXPECT_EQ(tile.stride % 1024, 0);
      EXPECT_LE(static_cast<size_t>(tile.rows * tile.stride) * sizeof(float), bytes);
      next += tile.cols;
      ++products;
      return cudaSuccess;
    };
    ASSERT_EQ(RunCandidates(arguments, product, workspace.data(), nullptr), cudaSuccess);
    EXPECT_EQ(next, s.vocabulary);
    EXPECT_EQ(products, s.products);
  }
}

TEST_F(CandidatesKernelTest, TheWorkspaceOfTheLargestCallFitsEverySmallerOne) {
  for (int64_t rows = 1; rows <= 9000; rows += rows < 80 ? 1 : 509) {
    for (const int64_t columns : {int64_t{1}, int64_t{1025}, int64_t{126464}, int64_t{262144}}) {
      const CandidatesArguments small = {.rows = rows, .columns = columns, .batch = {.count = 8}, .top_count = 1};
      for (CandidatesArguments large :
           {CandidatesArguments{.rows = rows + 1, .columns = columns, .batch = {.count = 8}, .top_count = 1},
            CandidatesArguments{.rows = rows, .columns = columns + 1000, .batch = {.count = 8}, .top_count = 1},
            CandidatesArguments{.rows = rows, .columns = columns, .batch = {.count = 9}, .top_count = 1},
            CandidatesArguments{.rows = rows, .columns = columns, .batch = {.count = 8}, .top_count = 256}}) {
        EXPECT_LE(CandidatesWorkspaceBytes(small), CandidatesWorkspaceBytes(large)) << rows << " x " << columns;
      }
    }
  }
}

// A step is captured once, for the most requests that it can hold, and replayed with others.
TEST_F(CandidatesKernelTest, ACapturedCallServesOtherRequestsAndLogits) {
  const int32_t rows = 5, columns = 2600, requests_max = 9;
  CandidatesCase c = {.logits = RandomMatrix(rows, columns, 21, 3.0f),
                      .shard = {.vocabulary = columns, .mask_id = 17},
                      .requests = std::vector<CandidateRequest>(requests_max, CandidateRequest{.row = -1}),
                      .top_count = 12};
  const DeviceCopy<float> logits(c.logits.values);
  const DeviceCopy<CandidateRequest> requests(c.requests);
  const DeviceCopy<Candidate> out{std::vector<Candidate>(requests_max)};
  const DeviceCopy<TopLogit> top{std::vector<TopLogit>(static_cast<size_t>(requests_max) * 12)};
  const CandidatesArguments arguments = {.rows = rows,
                                         .columns = columns,
                                         .shard = c.shard,
                                         .batch = {.requests = requests.data(), .count = requests_max},
                                         .top_count = 12,
                                         .out = out.data(),
                                         .top = top.data()};
  const DeviceCopy<uint8_t> workspace{std::vector<uint8_t>(CandidatesWorkspaceBytes(arguments, kOnePartTiles))};
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(
      RunCandidates(arguments, CopyOfLogits(logits.data(), columns, stream), workspace.data(), stream, kOnePartTiles),
      cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (const int32_t count : {0, 4, 9, 2}) {
    c.logits = RandomMatrix(rows, columns, static_cast<uint32_t>(30 + count), 3.0f);
    c.requests = MixedRequests(count, rows, 0, columns);
    c.requests.resize(requests_max, CandidateRequest{.row = -1});
    logits.Set(c.logits.values);
    requests.Set(c.requests);
    ASSERT_EQ(cudaGraphLaunch(exec, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const CandidatesOutput results = {out.Get(), top.Get()};
    ExpectAgreement(c, results, CandidatesReference(c));
  }
  EXPECT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

}  // namespace
}  // namespace quicksilver
