#include "kernels/cpu/thread_team.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace quicksilver {
namespace {

TEST(ThreadTeamTest, DoesEveryItemOnce) {
  for (const int32_t threads : {1, 2, 3}) {
    ThreadTeam team(threads);
    EXPECT_EQ(team.threads(), threads);
    for (const int64_t items : {0, 1, 2, 7, 100}) {
      for (const bool worth_sharing : {false, true}) {
        std::vector<std::atomic<int>> done(static_cast<size_t>(items));
        team.Run(items, worth_sharing, [&](int64_t item, int32_t thread) {
          EXPECT_GE(thread, 0);
          EXPECT_LT(thread, worth_sharing ? threads : 1);
          done[item].fetch_add(1);
        });
        for (const std::atomic<int>& count : done) EXPECT_EQ(count.load(), 1);
      }
    }
  }
}

TEST(ThreadTeamTest, WorkIsVisibleToTheCallerAndSleepersWakeUp) {
  ThreadTeam team(2);
  int64_t sum = 0;
  for (int round = 0; round < 200; ++round) {
    if (round % 50 == 49) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // Longer than anyone spins.
    std::vector<int64_t> squares(16);
    team.Run(16, true, [&](int64_t item, int32_t) { squares[item] = item * item; });
    for (const int64_t square : squares) sum += square;
  }
  EXPECT_EQ(sum, 200 * 1240);
}

}  // namespace
}  // namespace quicksilver
