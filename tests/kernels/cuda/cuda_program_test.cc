// What recording needs beforehand, and what it survives.
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "kernels/cuda/cuda_ops.h"
#include "tests/kernels/ops_fixture.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;

class CudaProgramTest : public OpsTestBase {
 protected:
  CudaProgramTest() {
    TwinDevice().Reset();
    CudaOpsOptions options;
    options.gemm.plans = {.small_rows = 8, .large_rows = 64, .timed_runs = 0, .warm_ups = 0, .cold_cache = false};
    options.gemm.row_buckets = {8, 64};
    UseOps(std::move(MakeCudaOps(options)).value());
  }
  ~CudaProgramTest() override {
    UseOps(nullptr);
    TwinDevice().Reset();
  }
};

// A batch that is no bucket: work that is not recorded pads it, a recording multiplies it as it is.
TEST_F(CudaProgramTest, ARehearsedRecordingNeitherTriesOutProductsNorAllocates) {
  const int64_t rows = 24;
  const std::unique_ptr<GemmWeight> layer = Prepare(RandomMatrix(48, 64, 1)), head = Prepare(RandomMatrix(100, 48, 2));
  const DeviceMatrix x = Put(RandomMatrix(rows, 64, 3), dtype(), /*gap=*/0),
                     y = Put(HostMatrix(rows, 48), dtype(), /*gap=*/0);
  const DeviceArray<CandidateRequest> requests = PutArray(std::vector<CandidateRequest>(rows));
  const DeviceArray<Candidate> candidates = PutArray(std::vector<Candidate>(rows));
  const auto work = [&] {
    ops().BeginStep({});
    ops().Gemm(x, *layer, y);
    ops().Candidates(y, *head, {0, 100, -1}, {.requests = requests.data(), .count = rows}, 0, candidates.data(),
                     nullptr);
  };
  ops().Rehearse(work);
  const int32_t plans = CudaProductsOf(ops()).plans;
  const auto program = ops().Record(work, nullptr);
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_EQ(TwinDevice().calls("cudaMalloc while capturing"), 0u);
  EXPECT_EQ(CudaProductsOf(ops()).plans, plans);
  ASSERT_TRUE(ops().Synchronize().ok());
}

TEST_F(CudaProgramTest, AProgramRunsAlsoWhereItCouldNotBeUploaded) {
  const DeviceMatrix x = Put(HostMatrix(1, 8));
  const DeviceArray<float> bias = PutArray(std::vector<float>(8, 1.0f));
  TwinDevice().FailCall("cudaGraphUpload", 1, cudaErrorMemoryAllocation);
  const auto program = ops().Record([&] { ops().AddBias(bias.data(), x); }, nullptr);
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_EQ(TwinDevice().calls("cudaGraphUpload"), 1u);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "nobody else is to find it";
  (*program)->Launch();
  EXPECT_EQ(Get(x).at(0, 0), 1.0f);
}

TEST_F(CudaProgramTest, AwaitTellsWorkThatIsStillUnderWayFromWorkThatHasEnded) {
  TwinDevice().SetDeferred(true);
  const DeviceBuffer shared = std::move(ops().AllocateShared(sizeof(uint32_t))).value();
  const uint32_t* const word = static_cast<const uint32_t*>(shared.data());
  const DeviceMatrix x = Put(HostMatrix(1, 8));
  const DeviceArray<float> bias = PutArray(std::vector<float>(8, 1.0f));
  for (int i = 0; i < 10; ++i) ops().AddBias(bias.data(), x);
  EXPECT_EQ(ops().Await(word, 1, /*milliseconds=*/0).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(ops().status().ok());
  EXPECT_TRUE(ops().Await(word, 0, /*milliseconds=*/0).ok()) << "the word is there";
  EXPECT_TRUE(ops().Await(word, 1, /*milliseconds=*/10000).ok()) << "the work ends";
  EXPECT_EQ(Get(x).at(0, 0), 10.0f);
}

}  // namespace
}  // namespace quicksilver
