#include "worker/collectives/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cstring>
#include <random>

#include "absl/time/clock.h"
#include "tests/collectives/group_of_threads.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(5);

absl::StatusOr<std::unique_ptr<Communicator>> MakeGloo(int rank, int ranks, RendezvousStore& store) {
  return MakeGlooCommunicator(GlooOptionsFor(rank, ranks, kTimeout), store, absl::Seconds(20));
}

uint16_t RoundToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Magnitudes so far apart that another order of additions gives other bits.
std::vector<float> PartOf(int rank, size_t elements, uint32_t seed) {
  std::mt19937 random(seed * 131 + static_cast<uint32_t>(rank));
  std::uniform_real_distribution<float> mantissa(-1.0f, 1.0f);
  std::vector<float> part(elements);
  for (float& x : part) x = std::ldexp(mantissa(random), static_cast<int>(random() % 24));
  return part;
}

std::vector<uint16_t> AsBf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) bits[i] = RoundToBf16(values[i]);
  return bits;
}

class CommunicatorTest : public ::testing::TestWithParam<CommunicatorKind> {
 protected:
  int ranks() const { return GetParam().ranks; }

  void WithGroup(const std::function<void(int rank, Communicator& group)>& body) {
    MemoryRendezvous store;
    RunRanks(ranks(), [&](int rank) {
      absl::StatusOr<std::unique_ptr<Communicator>> group = GetParam().make(rank, ranks(), store);
      ASSERT_TRUE(group.ok()) << group.status();
      EXPECT_EQ((*group)->rank(), rank);
      EXPECT_EQ((*group)->size(), ranks());
      body(rank, **group);
      // Nobody leaves before all are done.
      std::vector<char> all(static_cast<size_t>(ranks()));
      const char one = 1;
      (*group)->AllGather(&one, all.data(), 1);
    });
  }
};

// One element, odd sizes, both sides of every chunk, and enough for both ways of reducing.
const size_t kSizes[] = {1, 7, 2048, 8191, 8192, 8193, 16384, 100003, 300007};

TEST_P(CommunicatorTest, SumsFloatsInRankOrderToTheBit) {
  WithGroup([&](int rank, Communicator& group) {
    for (const size_t elements : kSizes) {
      std::vector<float> x = PartOf(rank, elements, 1), expected = PartOf(0, elements, 1);
      for (int other = 1; other < ranks(); ++other) {
        const std::vector<float> part = PartOf(other, elements, 1);
        for (size_t i = 0; i < elements; ++i) expected[i] += part[i];
      }
      const auto cols = static_cast<int64_t>(elements);
      group.AllReduceSum({x.data(), 1, cols, cols, DType::kF32});
      ASSERT_TRUE(group.Synchronize().ok());
      ASSERT_EQ(std::memcmp(x.data(), expected.data(), elements * sizeof(float)), 0) << elements << " elements";
    }
  });
}

TEST_P(CommunicatorTest, SumsBf16InFloatAndRoundsOnce) {
  WithGroup([&](int rank, Communicator& group) {
    for (const size_t elements : kSizes) {
      std::vector<uint16_t> x = AsBf16(PartOf(rank, elements, 2));
      std::vector<float> sum(elements, 0.0f);
      for (int other = 0; other < ranks(); ++other) {
        const std::vector<uint16_t> part = AsBf16(PartOf(other, elements, 2));
        for (size_t i = 0; i < elements; ++i) {
          const float value = std::bit_cast<float>(static_cast<uint32_t>(part[i]) << 16);
          sum[i] = other == 0 ? value : sum[i] + value;
        }
      }
      const auto cols = static_cast<int64_t>(elements);
      group.AllReduceSum({x.data(), 1, cols, cols, DType::kBf16});
      ASSERT_TRUE(group.Synchronize().ok());
      ASSERT_EQ(x, AsBf16(sum)) << elements << " elements";
    }
  });
}

// What promise 2 stands on: a row meets the same additions wherever it stands and whatever shares its matrix.
TEST_P(CommunicatorTest, TheBitsOfARowDependNeitherOnItsPlaceNorOnTheNumberOfRows) {
  constexpr int64_t kCols = 61;
  WithGroup([&](int rank, Communicator& group) {
    std::vector<float> alone = PartOf(rank, kCols, 3);
    const std::vector<float> row = alone;
    group.AllReduceSum({alone.data(), 1, kCols, kCols, DType::kF32});
    for (const int64_t rows : {2, 33, 700}) {
      for (const int64_t place : {int64_t{0}, rows / 2, rows - 1}) {
        std::vector<float> x = PartOf(rank, static_cast<size_t>(rows * kCols), 4);
        std::copy(row.begin(), row.end(), x.begin() + place * kCols);
        group.AllReduceSum({x.data(), rows, kCols, kCols, DType::kF32});
        ASSERT_EQ(std::memcmp(x.data() + place * kCols, alone.data(), kCols * sizeof(float)), 0)
            << "row " << place << " of " << rows;
      }
    }
    EXPECT_TRUE(group.Synchronize().ok());
  });
}

TEST_P(CommunicatorTest, NoRowsAndNoBytesAreNothing) {
  WithGroup([&](int rank, Communicator& group) {
    float x = static_cast<float>(rank + 1);
    group.AllReduceSum({&x, 0, 16, 16, DType::kF32});
    group.AllGather(nullptr, nullptr, 0);
    EXPECT_EQ(x, static_cast<float>(rank + 1));
    group.AllReduceSum({&x, 1, 1, 1, DType::kF32});
    EXPECT_TRUE(group.Synchronize().ok());
    EXPECT_EQ(x, static_cast<float>(ranks() * (ranks() + 1) / 2));
  });
}

TEST_P(CommunicatorTest, GathersInRankOrder) {
  WithGroup([&](int rank, Communicator& group) {
    for (const size_t bytes : {size_t{1}, size_t{12}, size_t{4099}, size_t{200001}}) {
      const std::vector<uint8_t> own(bytes, static_cast<uint8_t>(17 * rank + 5));
      std::vector<uint8_t> all(bytes * static_cast<size_t>(ranks()));
      group.AllGather(own.data(), all.data(), bytes);
      ASSERT_TRUE(group.Synchronize().ok());
      for (int other = 0; other < ranks(); ++other) {
        const auto first = all.begin() + static_cast<std::ptrdiff_t>(bytes) * other;
        ASSERT_EQ(std::vector<uint8_t>(first, first + static_cast<std::ptrdiff_t>(bytes)),
                  std::vector<uint8_t>(bytes, static_cast<uint8_t>(17 * other + 5)));
      }
    }
  });
}

TEST_P(CommunicatorTest, GathersInPlace) {
  WithGroup([&](int rank, Communicator& group) {
    std::vector<int> all(static_cast<size_t>(ranks()), -1);
    all[rank] = 100 + rank;
    group.AllGather(&all[rank], all.data(), sizeof(int));
    for (int other = 0; other < ranks(); ++other) EXPECT_EQ(all[other], 100 + other);
  });
}

TEST_P(CommunicatorTest, AbortMakesLaterWorkFail) {
  WithGroup([&](int, Communicator& group) {
    group.Abort();
    float x = 1;
    group.AllReduceSum({&x, 1, 1, 1, DType::kF32});
    EXPECT_TRUE(absl::IsUnavailable(group.Synchronize()));
  });
}

INSTANTIATE_TEST_SUITE_P(Local, CommunicatorTest,
                         ::testing::Values(CommunicatorKind{"local", 1,
                                                            [](int, int, RendezvousStore&) {
                                                              return absl::StatusOr<std::unique_ptr<Communicator>>(
                                                                  MakeLocalCommunicator());
                                                            }}),
                         [](const auto& kind) { return std::string(kind.param.name); });
INSTANTIATE_TEST_SUITE_P(Gloo, CommunicatorTest,
                         ::testing::Values(CommunicatorKind{"two", 2, MakeGloo}, CommunicatorKind{"three", 3, MakeGloo},
                                           CommunicatorKind{"four", 4, MakeGloo}),
                         [](const auto& kind) { return std::string(kind.param.name); });

// The faults below need a peer: gloo only.
class GlooFaultTest : public ::testing::Test {
 protected:
  /// Forms a group of two and runs `body` on rank 0 while rank 1 does nothing until `body` is done.
  void AgainstAnIdlePeer(absl::Duration timeout, const std::function<void(Communicator& group)>& body) {
    MemoryRendezvous store;
    std::atomic<bool> done = false;
    RunRanks(2, [&](int rank) {
      auto group = MakeGlooCommunicator(GlooOptionsFor(rank, 2, timeout), store, absl::Seconds(20));
      ASSERT_TRUE(group.ok()) << group.status();
      if (rank == 0) body(**group);
      if (rank == 0) done = true;
      while (!done) absl::SleepFor(absl::Milliseconds(5));
    });
  }
  static absl::Status Reduce(Communicator& group) {
    float x = 1;
    group.AllReduceSum({&x, 1, 1, 1, DType::kF32});
    return group.Synchronize();
  }
};

TEST_F(GlooFaultTest, AbortFromAnotherThreadEndsAWaitAtOnce) {
  AgainstAnIdlePeer(absl::Seconds(30), [&](Communicator& group) {
    std::thread other([&group] {
      absl::SleepFor(absl::Milliseconds(100));
      group.Abort();
    });
    const absl::Time start = absl::Now();
    EXPECT_TRUE(absl::IsUnavailable(Reduce(group)));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    other.join();
  });
}

TEST_F(GlooFaultTest, ASilentPeerIsLostAfterTheTimeoutAndStaysLost) {
  AgainstAnIdlePeer(absl::Milliseconds(300), [&](Communicator& group) {
    const absl::Time start = absl::Now();
    const absl::Status status = Reduce(group);
    EXPECT_TRUE(absl::IsUnavailable(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 1: silent for 300ms"));
    EXPECT_GE(absl::Now() - start, absl::Milliseconds(300));
    EXPECT_LT(absl::Now() - start, absl::Seconds(2));
    EXPECT_EQ(Reduce(group), status);
  });
}

TEST_F(GlooFaultTest, RanksThatDisagreeAboutASizeBothFail) {
  MemoryRendezvous store;
  RunRanks(2, [&](int rank) {
    auto group = MakeGlooCommunicator(GlooOptionsFor(rank, 2, absl::Seconds(2)), store, absl::Seconds(20));
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<float> x(8, 1.0f);
    const int64_t cols = rank == 0 ? 8 : 4;
    (*group)->AllReduceSum({x.data(), 1, cols, cols, DType::kF32});
    EXPECT_FALSE((*group)->Synchronize().ok());
  });
}

TEST_F(GlooFaultTest, AMissingRankEndsTheFormation) {
  MemoryRendezvous store;
  const auto group = MakeGlooCommunicator(GlooOptionsFor(0, 2, absl::Seconds(1)), store, absl::Milliseconds(200));
  EXPECT_TRUE(absl::IsUnavailable(group.status())) << group.status();
}

}  // namespace
}  // namespace quicksilver
