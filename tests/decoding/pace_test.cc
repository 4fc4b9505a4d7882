#include "worker/decoding/pace.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace quicksilver {
namespace {

TEST(PaceTest, StepsCountEveryBlockForItself) {
  EXPECT_EQ(StepsFor({.open = 3, .later = 0, .block_length = 8}, 2), 2);
  EXPECT_EQ(StepsFor({.open = 3, .later = 8, .block_length = 8}, 3), 1 + 3);
  EXPECT_EQ(StepsFor({.open = 8, .later = 12, .block_length = 8}, 5), 2 + 2 + 1) << "the last block is short";
}

TEST(PaceTest, WhereOneTokenAStepWillDoThePolicyIsLeftAlone) {
  EXPECT_EQ(CommitsForPace({.open = 4, .later = 8, .block_length = 8}, 12), 0);
  EXPECT_EQ(CommitsForPace({.open = 4, .later = 8, .block_length = 8}, 11), 2);
}

TEST(PaceTest, TooLittleTimeCommitsWholeBlocks) {
  EXPECT_EQ(CommitsForPace({.open = 2, .later = 24, .block_length = 8}, 0), 8);
  EXPECT_EQ(CommitsForPace({.open = 5, .later = 0, .block_length = 8}, -3), 5);
}

TEST(PaceTest, ThePaceIsTheSlowestThatArrivesInTime) {
  for (int32_t block = 1; block <= 12; ++block) {
    for (int32_t open = 1; open <= block; ++open) {
      for (int32_t later = 0; later <= 30; later += 5) {
        const RemainingMasks masks = {open, later, block};
        for (int64_t steps = 1; steps <= 40; ++steps) {
          const int32_t pace = std::max(1, CommitsForPace(masks, steps));
          const int32_t whole = later > 0 ? block : open;
          if (StepsFor(masks, whole) > steps) {
            EXPECT_EQ(pace, whole);
            continue;
          }
          EXPECT_LE(StepsFor(masks, pace), steps);
          EXPECT_TRUE(pace == 1 || StepsFor(masks, pace - 1) > steps);
        }
      }
    }
  }
}

}  // namespace
}  // namespace quicksilver
