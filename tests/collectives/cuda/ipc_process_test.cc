#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/collectives/cuda/device_or_twin.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_directory.h"

namespace quicksilver {
namespace {

// As built, or beside this program where both were carried.
std::string RankProgram() {
  const std::filesystem::path built = IPC_RANK;
  std::error_code error;
  if (std::filesystem::exists(built, error)) return built;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path() / built.filename();
}

// Real processes that share the memory of one device: threads cannot be killed or stopped one by one.
class IpcProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = PrepareDevices(1); !missing.empty()) GTEST_SKIP() << missing;
  }

  void Start(int ranks, absl::Duration timeout) {
    for (int rank = 0; rank < ranks; ++rank) {
      ranks_.push_back(std::make_unique<ChildProcess>(
          std::vector<std::string>{RankProgram(), absl::StrCat(rank), absl::StrCat(ranks), directory_.path(),
                                   absl::StrCat(absl::ToInt64Milliseconds(timeout))}));
    }
    for (auto& rank : ranks_) {
      ASSERT_TRUE(rank->WaitForOutput("exact", absl::Seconds(60))) << rank->output();
      ASSERT_TRUE(rank->WaitForOutput("running", absl::Seconds(10))) << rank->output();
    }
    absl::SleepFor(absl::Milliseconds(100));
  }

  void ExpectLoss(int rank, absl::Duration most) {
    const absl::Time start = absl::Now();
    EXPECT_TRUE(ranks_[rank]->WaitForOutput("UNAVAILABLE", absl::Seconds(20))) << ranks_[rank]->output();
    EXPECT_LT(absl::Now() - start, most) << "rank " << rank;
    EXPECT_EQ(ranks_[rank]->Wait(absl::Seconds(5)), 0);
  }

  TempDirectory directory_;
  std::vector<std::unique_ptr<ChildProcess>> ranks_;
};

TEST_F(IpcProcessTest, TwoProcessesOnOneDeviceSumAndGatherToTheBit) { Start(2, absl::Seconds(20)); }

TEST_F(IpcProcessTest, AKilledPeerIsLostWithinTheTimeout) {
  Start(2, absl::Seconds(1));
  ranks_[1]->Kill(SIGKILL);
  ExpectLoss(0, absl::Seconds(3));
}

TEST_F(IpcProcessTest, AStoppedPeerIsLostWithinTheTimeoutByEveryOther) {
  Start(3, absl::Seconds(1));
  ranks_[0]->Kill(SIGSTOP);
  ExpectLoss(1, absl::Seconds(3));
  ExpectLoss(2, absl::Seconds(3));
}

}  // namespace
}  // namespace quicksilver
