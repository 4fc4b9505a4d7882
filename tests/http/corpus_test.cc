// Plays the corpus of a fuzz target, and every prefix of its small files, through the target in an ordinary build.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace quicksilver {
namespace {

// CORPUS_NAME: the fuzz target, so that every corpus is a test of its own name.
TEST(CORPUS_NAME, EveryFileAndItsPrefixesPass) {
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(CORPUS_DIRECTORY)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    ASSERT_FALSE(text.empty());
    const auto* data = reinterpret_cast<const uint8_t*>(text.data());
    for (size_t size = 0; size < std::min<size_t>(text.size(), 2048); ++size) LLVMFuzzerTestOneInput(data, size);
    LLVMFuzzerTestOneInput(data, text.size());
    ++files;
  }
  EXPECT_GE(files, 5u);
}

}  // namespace
}  // namespace quicksilver
