#include "tests/collectives/communicator_suite.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace quicksilver {
namespace {

// One element, odd sizes, both sides of every chunk, and enough for both ways of reducing.
#ifdef COMMUNICATOR_SUITE_SMALL
const size_t kSizes[] = {1, 7, 2048, 8193};
const int64_t kRows[] = {2, 33};
#else
const size_t kSizes[] = {1, 7, 2048, 8191, 8192, 8193, 16384, 100003, 300007};
const int64_t kRows[] = {2, 33, 700};
#endif

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

void CommunicatorTest::WithGroup(const std::function<void(int, Communicator&, RankMemory&)>& body) {
  MemoryRendezvous store;
  RunRanks(ranks(), [&](int rank) {
    absl::StatusOr<RankMember> member = GetParam().make(rank, ranks(), store);
    ASSERT_TRUE(member.ok()) << member.status();
    Communicator& group = *member->group;
    EXPECT_EQ(group.rank(), rank);
    EXPECT_EQ(group.size(), ranks());
    body(rank, group, *member->memory);
    // Nobody leaves before all are done.
    const RankArray<char> one(*member->memory, {1}), all(*member->memory, std::vector<char>(ranks()));
    group.AllGather(one.data(), all.data(), 1);
    group.Synchronize().IgnoreError();
  });
}

TEST_P(CommunicatorTest, SumsFloatsInRankOrderToTheBit) {
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    ASSERT_TRUE(group.deterministic());
    for (const size_t elements : kSizes) {
      const RankArray<float> x(memory, PartOf(rank, elements, 1));
      group.AllReduceSum(x.row(DType::kF32));
      ASSERT_TRUE(group.Synchronize().ok());
      ASSERT_TRUE(SameBits(x.Get(), SumOfParts(ranks(), elements, 1))) << elements << " elements";
    }
  });
}

TEST_P(CommunicatorTest, SumsBf16InFloatAndRoundsOnce) {
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    for (const size_t elements : kSizes) {
      std::vector<float> sum(elements, 0.0f);
      for (int other = 0; other < ranks(); ++other) {
        const std::vector<uint16_t> part = AsBf16(PartOf(other, elements, 2));
        for (size_t i = 0; i < elements; ++i) {
          const float value = std::bit_cast<float>(static_cast<uint32_t>(part[i]) << 16);
          sum[i] = other == 0 ? value : sum[i] + value;
        }
      }
      const RankArray<uint16_t> x(memory, AsBf16(PartOf(rank, elements, 2)));
      group.AllReduceSum(x.row(DType::kBf16));
      ASSERT_TRUE(group.Synchronize().ok());
      ASSERT_EQ(x.Get(), AsBf16(sum)) << elements << " elements";
    }
  });
}

// What promise 2 stands on: a row meets the same additions wherever it stands and whatever shares its matrix.
TEST_P(CommunicatorTest, TheBitsOfARowDependNeitherOnItsPlaceNorOnTheNumberOfRows) {
  constexpr int64_t kCols = 61;
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    const std::vector<float> row = PartOf(rank, kCols, 3);
    const RankArray<float> one(memory, row);
    group.AllReduceSum(one.row(DType::kF32));
    ASSERT_TRUE(group.Synchronize().ok());
    const std::vector<float> alone = one.Get();
    for (const int64_t rows : kRows) {
      for (const int64_t place : {int64_t{0}, rows / 2, rows - 1}) {
        std::vector<float> values = PartOf(rank, static_cast<size_t>(rows * kCols), 4);
        std::copy(row.begin(), row.end(), values.begin() + place * kCols);
        const RankArray<float> x(memory, values);
        group.AllReduceSum({x.data(), rows, kCols, kCols, DType::kF32});
        ASSERT_TRUE(group.Synchronize().ok());
        values = x.Get();
        ASSERT_EQ(std::memcmp(values.data() + place * kCols, alone.data(), kCols * sizeof(float)), 0)
            << "row " << place << " of " << rows;
      }
    }
  });
}

// A band of a larger buffer may begin anywhere.
TEST_P(CommunicatorTest, TheBitsDoNotDependOnTheAlignment) {
  constexpr size_t kElements = 5003;
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    for (const size_t shift : {0, 1, 2, 3, 5}) {
      std::vector<float> values(shift, 1.0f);
      const std::vector<float> part = PartOf(rank, kElements, 5), sum = SumOfParts(ranks(), kElements, 5);
      values.insert(values.end(), part.begin(), part.end());
      const RankArray<float> x(memory, values);
      group.AllReduceSum({x.data() + shift, 1, kElements, kElements, DType::kF32});
      ASSERT_TRUE(group.Synchronize().ok());
      values = x.Get();
      ASSERT_EQ(std::memcmp(values.data() + shift, sum.data(), kElements * sizeof(float)), 0) << "shift " << shift;
      ASSERT_EQ(std::count(values.begin(), values.begin() + shift, 1.0f), shift);
    }
  });
}

TEST_P(CommunicatorTest, NoRowsAndNoBytesAreNothing) {
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    const RankArray<float> x(memory, {static_cast<float>(rank + 1)});
    group.AllReduceSum({x.data(), 0, 16, 16, DType::kF32});
    group.AllGather(nullptr, nullptr, 0);
    ASSERT_TRUE(group.Synchronize().ok());
    EXPECT_EQ(x.Get()[0], static_cast<float>(rank + 1));
    group.AllReduceSum(x.row(DType::kF32));
    EXPECT_TRUE(group.Synchronize().ok());
    EXPECT_EQ(x.Get()[0], static_cast<float>(ranks() * (ranks() + 1) / 2));
  });
}

TEST_P(CommunicatorTest, GathersInRankOrder) {
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    for (const size_t bytes : {size_t{1}, size_t{12}, size_t{4099}, size_t{200001}}) {
      std::vector<uint8_t> own(bytes);
      for (size_t i = 0; i < bytes; ++i) own[i] = static_cast<uint8_t>(17 * rank + 5 + 3 * i);
      const RankArray<uint8_t> in(memory, own), out(memory, std::vector<uint8_t>(bytes * static_cast<size_t>(ranks())));
      group.AllGather(in.data(), out.data(), bytes);
      ASSERT_TRUE(group.Synchronize().ok());
      const std::vector<uint8_t> all = out.Get();
      for (int other = 0; other < ranks(); ++other) {
        for (size_t i = 0; i < bytes; ++i) {
          ASSERT_EQ(all[static_cast<size_t>(other) * bytes + i], static_cast<uint8_t>(17 * other + 5 + 3 * i))
              << "byte " << i << " of rank " << other << ", " << bytes << " bytes";
        }
      }
    }
  });
}

TEST_P(CommunicatorTest, GathersInPlace) {
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    std::vector<int> values(static_cast<size_t>(ranks()), -1);
    values[rank] = 100 + rank;
    const RankArray<int> all(memory, values);
    group.AllGather(all.data() + rank, all.data(), sizeof(int));
    ASSERT_TRUE(group.Synchronize().ok());
    values = all.Get();
    for (int other = 0; other < ranks(); ++other) EXPECT_EQ(values[other], 100 + other);
  });
}

// As in a step: many operations of many sizes between two waits.
TEST_P(CommunicatorTest, OperationsOfAllSizesFollowEachOtherWithoutAWait) {
  WithGroup([&](int rank, Communicator& group, RankMemory& memory) {
    std::vector<RankArray<float>> sums;
    std::vector<RankArray<int>> gathers;
    const std::vector<size_t> sizes = {70000, 1, 9000, 33, 70000, 1, 1, 300, 20000, 5};
    for (size_t i = 0; i < sizes.size(); ++i) {
      sums.emplace_back(memory, PartOf(rank, sizes[i], 6 + static_cast<uint32_t>(i)));
      gathers.emplace_back(memory, std::vector<int>(static_cast<size_t>(ranks() + 1), rank));
    }
    for (size_t i = 0; i < sizes.size(); ++i) {
      group.AllReduceSum(sums[i].row(DType::kF32));
      group.AllGather(gathers[i].data() + ranks(), gathers[i].data(), sizeof(int));
    }
    ASSERT_TRUE(group.Synchronize().ok());
    for (size_t i = 0; i < sizes.size(); ++i) {
      EXPECT_TRUE(SameBits(sums[i].Get(), SumOfParts(ranks(), sizes[i], 6 + static_cast<uint32_t>(i)))) << i;
      const std::vector<int> gathered = gathers[i].Get();
      for (int other = 0; other < ranks(); ++other) EXPECT_EQ(gathered[other], other);
    }
  });
}

TEST_P(CommunicatorTest, AbortMakesLaterWorkFail) {
  WithGroup([&](int, Communicator& group, RankMemory& memory) {
    group.Abort();
    const RankArray<float> x(memory, {1.0f});
    group.AllReduceSum(x.row(DType::kF32));
    EXPECT_TRUE(absl::IsUnavailable(group.Synchronize()));
  });
}

}  // namespace quicksilver
