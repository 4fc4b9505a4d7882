#include "kernels/cuda/attention_plan.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/kernels/cuda/attention_run.h"

namespace quicksilver::attention {
namespace {

TEST(AttentionDivisorTest, EveryQuotientIsExact) {
  std::mt19937 generator(1);
  std::vector<int32_t> divisors = {1, 2, 3, 5, 7, 12, 32, 100, 641, 65535, 65536, 65537, 1 << 30, 0x7FFFFFFF};
  for (int i = 0; i < 50; ++i) divisors.push_back(static_cast<int32_t>(generator() >> (1 + i % 30)) | 1);
  for (const int32_t d : divisors) {
    const Divisor divisor = Divisor::Of(d);
    std::vector<int32_t> values = {0, 1, d - 1, d, 0x7FFFFFFF, 0x7FFFFFFF / d * d, 0x7FFFFFFF / d * d - 1};
    for (int i = 0; i < 50; ++i) values.push_back(static_cast<int32_t>(generator() >> 1));
    for (const int32_t value : values) ASSERT_EQ(divisor.Quotient(value), value / d) << value << " / " << d;
  }
}

TEST(AttentionChunkTest, ChunksAreWholeTilesWithoutGaps) {
  int32_t chunk = 0;
  for (int32_t position = 0; position < 40000; ++position) {
    if (position == ChunkStart(chunk + 1)) ++chunk;
    ASSERT_EQ(ChunkOf(position), chunk) << "position " << position;
    ASSERT_TRUE(position != ChunkStart(chunk) || position % kTileKeys == 0) << "position " << position;
  }
}

TEST(AttentionMaskTest, AQuerySeesItsOwnBlockAndEarlierOnes) {
  EXPECT_EQ(VisibleKeys(8, 100, 0), 8);
  EXPECT_EQ(VisibleKeys(8, 100, 7), 8);
  EXPECT_EQ(VisibleKeys(8, 100, 8), 16);
  EXPECT_EQ(VisibleKeys(8, 100, 98), 100);
  EXPECT_EQ(VisibleKeys(1, 100, 98), 99);
  EXPECT_EQ(VisibleKeys(kBidirectional, 100, 3), 100);
}

TEST(AttentionMaskTest, AWindowLeavesTheLastKeys) {
  EXPECT_EQ(FirstKey(/*window=*/0, /*block_length=*/1, /*first_position=*/80, /*position=*/90), 0);
  EXPECT_EQ(FirstKey(10, 1, 80, 90), 81) << "ten, its own included";
  EXPECT_EQ(FirstKey(10, kBidirectional, 80, 90), 71) << "nine in front of the canvas";
  EXPECT_EQ(FirstKey(100, 1, 80, 90), 0);
}

/// A plan, in memory that a kernel can write.
class PlanMemory {
 public:
  PlanMemory() {
    plan.counts = Allocate<Counts>(1);
    plan.jobs = Allocate<Job>(kJobsMax);
    plan.merges = Allocate<Merge>(kJobsMax);
    plan.first_tiles = Allocate<int32_t>(kSegmentsMax);
    plan.costs_before = Allocate<int32_t>(kJobsMax);
  }
  ~PlanMemory() {
    for (void* part : parts_) EXPECT_EQ(cudaFree(part), cudaSuccess);
  }

  template <typename T>
  T* Allocate(size_t count) {
    parts_.push_back(nullptr);
    EXPECT_EQ(cudaMalloc(&parts_.back(), count * sizeof(T)), cudaSuccess);
    return static_cast<T*>(parts_.back());
  }

  Plan plan;

 private:
  std::vector<void*> parts_;
};

/// A plan on the host.
struct HostPlan {
  Counts counts;
  std::vector<Job> whole, pieces;
  std::vector<Merge> merges;
};

template <typename T>
std::vector<T> Download(const T* data, int32_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  EXPECT_EQ(cudaMemcpy(values.data(), data, values.size() * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
  return values;
}

HostPlan MakePlan(const std::vector<AttentionSegment>& segments, PlanRequest request) {
  PlanMemory memory;
  AttentionSegment* const device = memory.Allocate<AttentionSegment>(segments.size());
  EXPECT_EQ(cudaMemcpy(device, segments.data(), segments.size() * sizeof(AttentionSegment), cudaMemcpyHostToDevice),
            cudaSuccess);
  request.segments = device;
  request.segments_count = static_cast<int32_t>(segments.size());
  EXPECT_EQ(LaunchPlan(nullptr, request, memory.plan), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  HostPlan plan;
  plan.counts = Download(memory.plan.counts, 1)[0];
  for (const Job& job : Download(memory.plan.jobs, plan.counts.jobs)) {
    (job.partial < 0 ? plan.whole : plan.pieces).push_back(job);
  }
  plan.merges = Download(memory.plan.merges, plan.counts.merges);
  return plan;
}

PlanRequest Request() {
  return {.group = Divisor::Of(4), .kv_heads = 8, .tile_queries = 128, .blocks = 132, .partial_rows_max = 100000};
}

/// `count` steps of one block of 32 rows over `keys` keys.
std::vector<AttentionSegment> Blocks(int32_t count, int32_t keys) {
  std::vector<AttentionSegment> segments;
  for (int32_t s = 0; s < count; ++s) {
    segments.push_back({.first_row = 32 * s,
                        .rows = 32,
                        .first_position = keys - 32,
                        .keys = keys,
                        .first_page = s,
                        .block_length = 32});
  }
  return segments;
}

std::vector<AttentionSegment> RandomSegments(std::mt19937& generator) {
  std::vector<AttentionSegment> segments(1 + generator() % 600);
  int32_t row = 0;
  for (AttentionSegment& s : segments) {
    s.first_row = row;
    s.rows = generator() % 10 == 0 ? 0 : static_cast<int32_t>(1 + generator() % (generator() % 8 == 0 ? 300 : 40));
    s.first_position = static_cast<int32_t>(generator() % 3000);
    s.keys = s.first_position + s.rows + static_cast<int32_t>(generator() % 40);
    s.first_page = static_cast<int32_t>(generator() % 1000);
    const int32_t blocks[] = {1, 4, 32, kBidirectional};
    s.block_length = blocks[generator() % 4];
    row += s.rows;
  }
  return segments;
}

using Query = std::pair<int32_t, int32_t>;  // Row of the batch, head of the group.

/// How many keys of each query the jobs cover, as runs of tiles that must follow one another.
void ExpectJobsCoverEveryKeyOnce(const std::vector<AttentionSegment>& segments, const PlanRequest& request,
                                 const HostPlan& plan) {
  std::map<Query, int32_t> tiles_done, tiles_wanted, first_wanted;
  for (const AttentionSegment& s : segments) {
    for (int32_t i = 0; i < s.rows * request.group.divisor; ++i) {
      const int32_t row = i / request.group.divisor;
      const int32_t visible = VisibleKeys(s.block_length, s.keys, s.first_position + row);
      const Query query = {s.first_row + row, i % request.group.divisor};
      tiles_wanted[query] = (visible + kTileKeys - 1) / kTileKeys;
      first_wanted[query] =
          FirstKey(request.window, s.block_length, s.first_position, s.first_position + row) / kTileKeys;
    }
  }
  const auto count = [&](const Job& job) {
    ASSERT_GT(job.end_tile, job.first_tile);
    ASSERT_LE(job.queries, request.tile_queries);
    for (int32_t i = job.first_query; i < job.first_query + job.queries; ++i) {
      const Query query = {job.first_row + i / request.group.divisor, i % request.group.divisor};
      const auto [done, first] = tiles_done.try_emplace(query, job.first_tile);
      ASSERT_TRUE(!first || job.first_tile <= first_wanted[query]);
      ASSERT_EQ(done->second, job.first_tile);
      done->second = job.end_tile;
    }
  };
  for (const Job& job : plan.whole) {
    ASSERT_TRUE(request.window != 0 || job.first_tile == 0);
    count(job);
  }
  for (const Job& job : plan.pieces) {
    const int32_t first_key = job.first_tile * kTileKeys;
    ASSERT_TRUE(request.window != 0 || ChunkStart(ChunkOf(first_key)) == first_key);
    ASSERT_LE(job.end_tile * kTileKeys, ChunkStart(ChunkOf(job.first_tile * kTileKeys) + 1));
    count(job);
  }
  ASSERT_EQ(tiles_done.size(), tiles_wanted.size());
  // A query may be shown tiles past its own, for the sake of others of its tile, but must not miss one.
  for (const auto& [query, tiles] : tiles_wanted) ASSERT_GE(tiles_done[query], tiles) << "row " << query.first;
}

/// Every piece has partial rows of its own, and a merge reads them all.
void ExpectMergesReadEveryPiece(const PlanRequest& request, const HostPlan& plan) {
  std::set<std::tuple<int32_t, int32_t, int32_t>> written;  // First partial row of a job, queries, row of the batch.
  std::vector<bool> used(static_cast<size_t>(request.partial_rows_max));
  for (const Job& job : plan.pieces) {
    const int32_t rows = job.queries * request.kv_heads;
    ASSERT_LE(job.partial + rows, request.partial_rows_max);
    for (int32_t row = job.partial; row < job.partial + rows; ++row) {
      ASSERT_FALSE(used[row]) << "partial row " << row;
      used[row] = true;
    }
    written.insert({job.partial, job.queries, job.first_row});
  }
  int32_t units = 0;
  for (const Merge& merge : plan.merges) {
    ASSERT_EQ(merge.first_unit, units);
    units += merge.queries * request.kv_heads;
    for (int32_t c = 0; c < merge.chunks; ++c) {
      const int32_t partial = merge.partial + c * merge.queries * request.kv_heads;
      ASSERT_EQ(written.erase({partial, merge.queries, merge.first_row}), 1u);
    }
  }
  EXPECT_TRUE(written.empty());
  EXPECT_EQ(plan.counts.merge_units, units);
}

class AttentionPlanTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string missing = WhyNoDevice();
    if (!missing.empty()) GTEST_SKIP() << missing;
  }
};

TEST_F(AttentionPlanTest, JobsCoverEveryKeyOfEveryQueryOnce) {
  std::mt19937 generator(3);
  for (int32_t i = 0; i < 12; ++i) {
    SCOPED_TRACE(absl::StrCat("case ", i));
    const std::vector<AttentionSegment> segments = RandomSegments(generator);
    PlanRequest request = Request();
    request.split = i % 3 == 0 ? Split::kAlways : i % 3 == 1 ? Split::kAuto : Split::kNever;
    request.group = Divisor::Of(1 + i % 5);
    request.tile_queries = i % 2 == 0 ? 64 : 16;
    request.partial_rows_max = i == 6 ? 5000 : 2000000;
    request.window = i % 4 == 3 ? 1 + i * 50 : 0;
    const HostPlan plan = MakePlan(segments, request);
    ExpectJobsCoverEveryKeyOnce(segments, request, plan);
    ExpectMergesReadEveryPiece(request, plan);
    EXPECT_TRUE(request.split != Split::kNever || plan.pieces.empty());
    EXPECT_TRUE(request.split != Split::kAlways || !plan.pieces.empty());
  }
}

TEST_F(AttentionPlanTest, OneSequenceIsSplitSoThatEveryBlockHasWork) {
  const HostPlan plan = MakePlan(Blocks(1, 1024), Request());
  EXPECT_EQ(plan.whole.size(), 0u);
  EXPECT_EQ(plan.pieces.size(), 8u);
}

TEST_F(AttentionPlanTest, WhatAWindowHidesIsNoWork) {
  std::vector<AttentionSegment> segments = Blocks(1, 4096);
  segments[0].block_length = kBidirectional;
  PlanRequest request = Request();
  request.window = 100;  // Keys 3965 to 4095: tiles 61 to 63, all in one chunk.
  const HostPlan plan = MakePlan(segments, request);
  ASSERT_EQ(plan.whole.size(), 1u);
  EXPECT_EQ(plan.whole[0].first_tile, 61);
  EXPECT_EQ(plan.whole[0].end_tile, 64);
}

TEST_F(AttentionPlanTest, AFullBatchIsNotSplit) {
  const HostPlan plan = MakePlan(Blocks(128, 1024), Request());
  EXPECT_EQ(plan.whole.size(), 128u);
  EXPECT_EQ(plan.pieces.size(), 0u);
}

// 17 sequences of 8 key heads are 4 items more than blocks: whole, those would double the time.
TEST_F(AttentionPlanTest, AFewItemsTooManyAreSplit) {
  const HostPlan plan = MakePlan(Blocks(17, 1024), Request());
  EXPECT_EQ(plan.whole.size(), 16u);
  EXPECT_EQ(plan.pieces.size(), 8u);
}

TEST_F(AttentionPlanTest, ALongContextAmongShortOnesIsSplit) {
  std::vector<AttentionSegment> segments = Blocks(64, 512);
  segments[5].first_position = 30000;
  segments[5].keys = 30032;
  const HostPlan plan = MakePlan(segments, Request());
  EXPECT_EQ(plan.whole.size(), 63u);
  EXPECT_EQ(plan.pieces.size(), static_cast<size_t>(ChunkOf(30031) + 1));
}

TEST_F(AttentionPlanTest, WhatHasNoRoomForPartialResultsStaysWhole) {
  PlanRequest request = Request();
  request.partial_rows_max = 8 * 8 * 128 - 1;  // Chunks, key heads, queries.
  EXPECT_EQ(MakePlan(Blocks(1, 1024), request).pieces.size(), 0u);
  ++request.partial_rows_max;
  EXPECT_EQ(MakePlan(Blocks(1, 1024), request).pieces.size(), 8u);
}

TEST_F(AttentionPlanTest, PaddingMakesNoWork) {
  const HostPlan plan = MakePlan(std::vector<AttentionSegment>(300), Request());
  EXPECT_EQ(plan.counts.jobs + plan.counts.merges, 0);
}

}  // namespace
}  // namespace quicksilver::attention
