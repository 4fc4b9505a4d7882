#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/checkpoint/safetensors_fuzz.h"
#include "worker/checkpoint/file.h"

namespace quicksilver {
namespace {

TEST(SafetensorsCorpusTest, EveryInputOfTheFuzzersCorpusHoldsItsInvariants) {
  int replayed = 0;
  for (const auto& entry : std::filesystem::directory_iterator(QUICKSILVER_ROOT "/tests/checkpoint/corpus")) {
    const auto input = ReadSmallFile(entry.path().string(), 1 << 20);
    ASSERT_TRUE(input.ok()) << input.status();
    FuzzSafetensorsHeader(reinterpret_cast<const uint8_t*>(input->data()), input->size());
    ++replayed;
  }
  EXPECT_GE(replayed, 10);
}

// Cheap mutations of the corpus, so that every run of the tests looks a little beyond it.
TEST(SafetensorsCorpusTest, SoDoesEveryInputWithOneByteChanged) {
  for (const auto& entry : std::filesystem::directory_iterator(QUICKSILVER_ROOT "/tests/checkpoint/corpus")) {
    const auto input = ReadSmallFile(entry.path().string(), 1 << 20);
    ASSERT_TRUE(input.ok()) << input.status();
    std::string bytes = *input;
    for (size_t i = 0; i < bytes.size(); ++i) {
      for (const char change : {'\0', '"', '9', '}', '\xff'}) {
        const char kept = std::exchange(bytes[i], change);
        FuzzSafetensorsHeader(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
        bytes[i] = kept;
      }
    }
  }
}

}  // namespace
}  // namespace quicksilver
