#include "worker/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "tests/support/temp_directory.h"
#include "worker/checkpoint/shard_index.h"

namespace quicksilver {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kHeader[] =
    R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"BF16","shape":[2,4],"data_offsets":[16,32]}})";
constexpr char kHeaderA[] = R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})";
constexpr char kHeaderB[] = R"({"b":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]}})";

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() { directory_.Write("config.json", "{}"); }

  void WriteSingle() { directory_.Write("model.safetensors", SafetensorsBytes(kHeader, 32)); }
  void WriteShards() {
    directory_.Write("model-00001-of-00002.safetensors", SafetensorsBytes(kHeaderA, 16));
    directory_.Write("model-00002-of-00002.safetensors", SafetensorsBytes(kHeaderB, 16));
    WriteIndex(R"("a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors")");
  }
  void WriteIndex(const std::string& weight_map) {
    directory_.Write(kShardIndexFile, R"({"metadata":{"total_size":32},"weight_map":{)" + weight_map + "}}");
  }
  absl::Status Open() { return Checkpoint::Open(directory_.path()).status(); }
  std::string ErrorOfOpen() { return std::string(Open().message()); }

  TempDirectory directory_;
};

TEST_F(CheckpointTest, ReadsSlicesOfASingleFile) {
  WriteSingle();
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensors().size(), 2u);
  EXPECT_EQ((*checkpoint)->Find("c"), nullptr);
  const StoredTensor* b = (*checkpoint)->Find("b");
  ASSERT_NE(b, nullptr);
  char read[3];
  ASSERT_TRUE((*checkpoint)->Read(*b, 5, sizeof(read), read).ok());
  EXPECT_EQ(std::string(read, 3), "\x15\x16\x17");
}

TEST_F(CheckpointTest, ReadsShards) {
  WriteShards();
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const StoredTensor* b = (*checkpoint)->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_THAT(b->file, HasSubstr("model-00002-of-00002.safetensors"));
  char read[2];
  ASSERT_TRUE((*checkpoint)->Read(*b, 14, sizeof(read), read).ok());
  EXPECT_EQ(std::string(read, 2), "\x0e\x0f");
}

TEST_F(CheckpointTest, FollowsSymbolicLinksToFiles) {
  WriteSingle();
  ASSERT_EQ(rename(directory_.PathOf("model.safetensors").c_str(), directory_.PathOf("blob").c_str()), 0);
  ASSERT_EQ(symlink("blob", directory_.PathOf("model.safetensors").c_str()), 0);
  EXPECT_TRUE(Open().ok()) << Open();
}

TEST_F(CheckpointTest, RefusesDevicesAndPipesWithoutReadingThem) {
  ASSERT_EQ(symlink("/dev/zero", directory_.PathOf("model.safetensors").c_str()), 0);
  EXPECT_THAT(ErrorOfOpen(), AllOf(HasSubstr("model.safetensors"), HasSubstr("regular file, found a device")));
  ASSERT_EQ(unlink(directory_.PathOf("model.safetensors").c_str()), 0);
  ASSERT_EQ(mkfifo(directory_.PathOf("model.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("found a pipe or socket"));
  ASSERT_EQ(unlink(directory_.PathOf("model.safetensors").c_str()), 0);
  ASSERT_EQ(mkdir(directory_.PathOf("model.safetensors").c_str(), 0700), 0);
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("found a directory"));
}

TEST_F(CheckpointTest, NamesWhatIsMissing) {
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::Open("/no/such/place").status()));
  EXPECT_THAT(ErrorOfOpen(), AllOf(HasSubstr("model.safetensors: No such file"), HasSubstr(kShardIndexFile)));
  ASSERT_EQ(unlink(directory_.PathOf("config.json").c_str()), 0);
  WriteSingle();
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("config.json: No such file"));
  EXPECT_THAT(std::string(Checkpoint::Open(directory_.PathOf("model.safetensors")).status().message()),
              HasSubstr("expected a checkpoint directory, found a file"));
}

TEST_F(CheckpointTest, AFileCutAtAnyByteIsRefused) {
  const std::string whole = SafetensorsBytes(kHeader, 32);
  for (size_t length = 0; length < whole.size(); ++length) {
    directory_.Write("model.safetensors", whole.substr(0, length));
    const absl::Status status = Open();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << length << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: ")) << length;
  }
  directory_.Write("model.safetensors", whole + "x");
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("expected 32 bytes of data for its tensors, found 33"));
}

TEST_F(CheckpointTest, HostileHeaderLengthsAreRefusedWithinASecondAndWithoutTheMemory) {
  const auto start = std::chrono::steady_clock::now();
  for (const uint64_t length : {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{101'000'000}, uint64_t{64}}) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, sizeof(length));
    directory_.Write("model.safetensors", bytes + "{}");
    EXPECT_THAT(ErrorOfOpen(), HasSubstr("found a length of " + std::to_string(length)));
  }
  // A sparse file can be as long as it says.
  const uint64_t length = 101'000'000;
  directory_.Write("model.safetensors", std::string(reinterpret_cast<const char*>(&length), sizeof(length)));
  ASSERT_EQ(truncate(directory_.PathOf("model.safetensors").c_str(), 200'000'000), 0);
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("expected a header of at most 100000000 bytes, found a length of 101000000"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

TEST_F(CheckpointTest, AMissingShardIsNamedWithATensorOfIt) {
  WriteShards();
  ASSERT_EQ(unlink(directory_.PathOf("model-00002-of-00002.safetensors").c_str()), 0);
  EXPECT_THAT(ErrorOfOpen(),
              AllOf(HasSubstr("model-00002-of-00002.safetensors: No such file"), HasSubstr("expects tensor 'b'")));
}

TEST_F(CheckpointTest, AShardOutsideOfTheIndexIsRefused) {
  WriteShards();
  directory_.Write("model-00003-of-00003.safetensors", SafetensorsBytes("{}", 0));
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("found also model-00003-of-00003.safetensors"));
}

TEST_F(CheckpointTest, AnIndexBesideAWholeModelIsRefused) {
  WriteShards();
  WriteSingle();
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("found also model.safetensors"));
}

TEST_F(CheckpointTest, IndexAndShardsMustAgreeOnEveryTensor) {
  WriteShards();
  WriteIndex(R"("a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors",
                "c":"model-00002-of-00002.safetensors")");
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("tensor 'c': expected in model-00002-of-00002.safetensors, found in no shard"));
  WriteIndex(R"("a":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors")");
  EXPECT_THAT(ErrorOfOpen(), AllOf(HasSubstr("tensor 'a': expected in model-00002-of-00002.safetensors, found in "),
                                   HasSubstr("model-00001-of-00002.safetensors")));
  WriteShards();
  directory_.Write("model-00002-of-00002.safetensors",
                   SafetensorsBytes(R"({"b":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]},
                                        "x":{"dtype":"F32","shape":[],"data_offsets":[16,20]}})",
                                    20));
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("tensor 'x': expected it in "));
}

TEST_F(CheckpointTest, ATensorInTwoShardsIsRefused) {
  WriteShards();
  directory_.Write("model-00002-of-00002.safetensors", SafetensorsBytes(kHeader, 32));
  EXPECT_THAT(ErrorOfOpen(), AllOf(HasSubstr("tensor 'a': expected once"), HasSubstr("found also in")));
}

TEST_F(CheckpointTest, AnIndexCannotLeaveItsDirectory) {
  for (const char* name : {"../model.safetensors", "/etc/passwd", "sub/model.safetensors", "", "model.bin"}) {
    WriteIndex(std::string("\"a\":\"") + name + "\"");
    EXPECT_THAT(ErrorOfOpen(), HasSubstr("expected the name of a .safetensors file beside the index")) << name;
  }
}

TEST_F(CheckpointTest, AMalformedIndexIsRefused) {
  for (const char* text : {"", "[]", "{", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})",
                           R"({"weight_map":{"a":"m.safetensors","a":"n.safetensors"}})"}) {
    directory_.Write(kShardIndexFile, text);
    EXPECT_THAT(ErrorOfOpen(), HasSubstr(kShardIndexFile)) << text;
  }
  directory_.Write(kShardIndexFile, std::string(100'000, '['));
  EXPECT_THAT(ErrorOfOpen(), HasSubstr("nested deeper than 64"));
}

// A file on failing storage, or one that is replaced under a running rank, must not kill it with SIGBUS.
TEST_F(CheckpointTest, AFileThatShrinksWhileInUseIsAnIoError) {
  WriteSingle();
  const auto checkpoint = Checkpoint::Open(directory_.path());
  ASSERT_TRUE(checkpoint.ok());
  ASSERT_EQ(truncate(directory_.PathOf("model.safetensors").c_str(), 100), 0);
  std::vector<char> read(16);
  const StoredTensor& b = *(*checkpoint)->Find("b");
  const absl::Status status = (*checkpoint)->Read(b, 0, read.size(), read.data());
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("I/O error reading " + directory_.PathOf("model.safetensors")));
  EXPECT_TRUE(absl::IsDataLoss((*checkpoint)->Digest(/*whole=*/true).status()));
}

class DigestTest : public CheckpointTest {
 protected:
  std::string Digest(bool whole) {
    const auto checkpoint = Checkpoint::Open(directory_.path());
    CHECK(checkpoint.ok());
    const auto digest = (*checkpoint)->Digest(whole);
    CHECK(digest.ok());
    return *digest;
  }
};

TEST_F(DigestTest, ChangesWithEveryFileThatTheModelDependsOn) {
  WriteSingle();
  const std::string before = Digest(false);
  EXPECT_EQ(before.size(), 64u);
  EXPECT_EQ(Digest(false), before);
  std::vector<std::string> seen = {before};
  directory_.Write("config.json", "{ }");
  seen.push_back(Digest(false));
  directory_.Write("generation_config.json", "{}");
  seen.push_back(Digest(false));
  directory_.Write("tokenizer.json", "{}");
  seen.push_back(Digest(false));
  directory_.Write("model.safetensors", SafetensorsBytes(std::string(kHeader) + " ", 32));
  seen.push_back(Digest(false));
  for (size_t i = 0; i < seen.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(seen[i], seen[j]) << i << " " << j;
  }
}

TEST_F(DigestTest, OnlyTheWholeOneSeesAChangedWeight) {
  WriteSingle();
  const std::string quick = Digest(false);
  const std::string whole = Digest(true);
  std::string bytes = SafetensorsBytes(kHeader, 32);
  bytes.back() = '!';
  directory_.Write("model.safetensors", bytes);
  EXPECT_EQ(Digest(false), quick);
  EXPECT_NE(Digest(true), whole);
}

}  // namespace
}  // namespace quicksilver
