#include "worker/model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "tests/support/temp_directory.h"
#include "tools/random_checkpoint.h"
#include "worker/model/load_spec.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

class WeightsTest : public testing::Test {
 protected:
  /// A model whose embedding (64 MiB) is read by several threads.
  void Write() {
    RandomCheckpointOptions options;
    options.directory = directory_.path();
    options.hidden = 512;
    options.layers = 1;
    options.heads = 4;
    options.kv_heads = 2;
    options.mlp = 512;
    options.vocabulary = 65536;
    ASSERT_TRUE(WriteRandomCheckpoint(options).ok());
    checkpoint_ = *Checkpoint::Open(directory_.path());
    spec_ = *LoadModelSpec(*checkpoint_);
    embedding_ = checkpoint_->Find(ExpectedTensors(spec_).front().name);
  }

  TempDirectory directory_;
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelSpec spec_;
  const StoredTensor* embedding_ = nullptr;
};

TEST_F(WeightsTest, ABigTensorArrivesWholeAndASliceOfItInItsPlace) {
  ASSERT_NO_FATAL_FAILURE(Write());
  std::vector<char> stored(embedding_->bytes);
  ASSERT_TRUE(checkpoint_->Read(*embedding_, 0, stored.size(), stored.data()).ok());
  for (const int ranks : {1, 2}) {
    const std::unique_ptr<Ops> ops = MakeReferenceOps(DType::kBf16);
    const Shard shard = *MakeShard(spec_, ranks - 1, ranks);
    size_t done = 0, of = 0;
    const absl::StatusOr<ModelWeights> weights = LoadWeights(spec_, shard, *checkpoint_, *ops, [&](size_t d, size_t t) {
      EXPECT_GE(d, done);
      done = d, of = t;
    });
    ASSERT_TRUE(weights.ok()) << weights.status();
    const size_t bytes = stored.size() / static_cast<size_t>(ranks);
    EXPECT_EQ(std::memcmp(weights->embedding.data, stored.data() + bytes * static_cast<size_t>(ranks - 1), bytes), 0);
    EXPECT_EQ(done, of);
  }
}

TEST_F(WeightsTest, AFileThatEndsBeforeTheShareOfOneReaderIsNamed) {
  ASSERT_NO_FATAL_FAILURE(Write());
  const std::string file = embedding_->file;
  ASSERT_EQ(truncate(file.c_str(), static_cast<off_t>(embedding_->offset + embedding_->bytes / 2)), 0);
  const std::unique_ptr<Ops> ops = MakeReferenceOps(DType::kBf16);
  const absl::Status status = LoadWeights(spec_, *MakeShard(spec_, 0, 1), *checkpoint_, *ops, nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(file));
}

}  // namespace
}  // namespace quicksilver
