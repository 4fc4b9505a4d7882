#include "kernels/cuda/cuda_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/ops_fixture.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver {
namespace {

using cuda_twin::TwinDevice;
using ::testing::AllOf;
using ::testing::HasSubstr;

MATCHER_P2(FailsWith, code, text, "") {
  return arg.code() == code && ExplainMatchResult(text, std::string(arg.message()), result_listener);
}
constexpr auto kFailedPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr auto kResourceExhausted = absl::StatusCode::kResourceExhausted;

/// What the world does to a device: it is missing, full, or breaks.
class CudaOpsTest : public OpsTestBase {
 protected:
  CudaOpsTest() { TwinDevice().Reset(); }
  ~CudaOpsTest() override {
    UseOps(nullptr);
    TwinDevice().Reset();
  }

  void UseCudaOps(const CudaOpsOptions& options = {}) {
    absl::StatusOr<std::unique_ptr<Ops>> ops = MakeCudaOps(options);
    ASSERT_TRUE(ops.ok()) << ops.status();
    UseOps(*std::move(ops));
  }
  static absl::Status Refusal(const CudaOpsOptions& options = {}) { return MakeCudaOps(options).status(); }

  /// Options with which a CPU does not take long to choose matrix products.
  static CudaOpsOptions FastOptions() {
    CudaOpsOptions options;
    options.gemm.plans = {.small_rows = 8, .large_rows = 64, .timed_runs = 0, .warm_ups = 0, .cold_cache = false};
    options.gemm.row_buckets = {8, 64};
    return options;
  }

  std::vector<float> Ones(size_t count) { return std::vector<float>(count, 1.0f); }
};

TEST_F(CudaOpsTest, SaysThatThereIsNoDevice) {
  TwinDevice().SetDeviceCount(0);
  EXPECT_THAT(Refusal(), FailsWith(kFailedPrecondition, HasSubstr("no device")));
}

TEST_F(CudaOpsTest, SaysHowManyDevicesThereAre) {
  TwinDevice().SetDeviceCount(2);
  EXPECT_THAT(Refusal({.device = 2}),
              FailsWith(kFailedPrecondition, AllOf(HasSubstr("no CUDA device 2"), HasSubstr("has 2"))));
  EXPECT_THAT(Refusal({.device = -1}), FailsWith(kFailedPrecondition, HasSubstr("no CUDA device -1")));
}

TEST_F(CudaOpsTest, SaysWhatTheKernelsAreBuiltFor) {
  for (const auto& [major, minor, found] : {std::tuple(8, 0, "8.0"), {10, 0, "10.0"}, {9, 1, "9.1"}}) {
    TwinDevice().SetComputeCapability(major, minor);
    EXPECT_THAT(Refusal(), FailsWith(kFailedPrecondition, AllOf(HasSubstr(found), HasSubstr("built for 9.0"))));
  }
}

TEST_F(CudaOpsTest, SaysWhatTheDriverIsTooOldFor) {
  TwinDevice().SetDriverVersion(12040);
  EXPECT_THAT(Refusal(), FailsWith(kFailedPrecondition, AllOf(HasSubstr("12.4"), HasSubstr("needs 13.0"))));
  TwinDevice().SetDriverVersion(0);
  EXPECT_THAT(Refusal(), FailsWith(kFailedPrecondition, HasSubstr("no NVIDIA driver")));
}

TEST_F(CudaOpsTest, PassesOnWhyDevicesCannotBeCounted) {
  TwinDevice().FailCall("cudaGetDeviceCount", 1, cudaErrorInsufficientDriver);
  EXPECT_THAT(Refusal(), FailsWith(kFailedPrecondition, HasSubstr("cudaErrorInsufficientDriver")));
}

TEST_F(CudaOpsTest, UsesTheDeviceThatItIsGiven) {
  TwinDevice().SetDeviceCount(2);
  UseCudaOps({.device = 1});
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  const DeviceMatrix x = Put(HostMatrix(1, 8));
  cudaPointerAttributes attributes = {};
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, x.buffer.data()), cudaSuccess);
  EXPECT_EQ(attributes.device, 1);
}

TEST_F(CudaOpsTest, RefusesABufferThatDoesNotFitAndGoesOn) {
  UseCudaOps();
  const size_t all = size_t{8} << 30;
  const absl::StatusOr<DeviceBuffer> buffer = ops().Allocate(all);
  EXPECT_THAT(buffer.status(), FailsWith(kResourceExhausted, AllOf(HasSubstr(std::to_string(all)), HasSubstr("free"))));
  EXPECT_TRUE(ops().Synchronize().ok());
  EXPECT_TRUE(ops().Allocate(1000).ok());
}

TEST_F(CudaOpsTest, RefusesAWeightThatDoesNotFitAndGoesOn) {
  UseCudaOps();
  TwinDevice().SetTotalMemory(TwinDevice().allocated_bytes() + 1000);
  const std::vector<float> weight = Ones(64 * 64);
  EXPECT_THAT(ops().PrepareWeight({weight.data(), 64, 64, 64, DType::kF32}, WeightRole::kLayer).status(),
              FailsWith(kResourceExhausted, HasSubstr("8192")));
  TwinDevice().SetTotalMemory(size_t{8} << 30);
  EXPECT_TRUE(ops().PrepareWeight({weight.data(), 64, 64, 64, DType::kF32}, WeightRole::kLayer).ok());
}

TEST_F(CudaOpsTest, CannotBeMadeWithoutMemoryAndLeavesNothingBehind) {
  const size_t streams = TwinDevice().streams();
  TwinDevice().SetTotalMemory(1 << 20);
  EXPECT_EQ(Refusal().code(), kResourceExhausted);
  EXPECT_EQ(TwinDevice().allocations(), 0u);
  EXPECT_EQ(TwinDevice().streams(), streams);
  EXPECT_EQ(TwinDevice().events(), 0u);
}

TEST_F(CudaOpsTest, GivesEverythingBack) {
  const size_t streams = TwinDevice().streams();
  UseCudaOps(FastOptions());
  {
    const std::unique_ptr<GemmWeight> weight = Prepare(RandomMatrix(16, 16, 1));
    const DeviceMatrix x = Put(RandomMatrix(2, 16, 2)), out = Space(2, 16);
    ops().Gemm(x, *weight, out);
    const absl::StatusOr<DeviceBuffer> shared = ops().AllocateShared(100);
    const DeviceArray<float> bias = PutArray(Ones(16));
    const auto program = ops().Record([&] { ops().AddBias(bias.data(), x); }, nullptr);
    EXPECT_TRUE(program.ok() && shared.ok());
  }
  UseOps(nullptr);
  EXPECT_EQ(TwinDevice().allocations(), 0u);
  EXPECT_EQ(TwinDevice().streams(), streams);
  EXPECT_EQ(TwinDevice().events(), 0u);
  EXPECT_EQ(TwinDevice().graphs(), 0u);
  EXPECT_EQ(TwinDevice().graph_execs(), 0u);
}

TEST_F(CudaOpsTest, AFailedLaunchIsNamedAndNothingFollowsIt) {
  UseCudaOps();
  const DeviceMatrix x = Put(HostMatrix(2, 16)), out = Space(2, 8);
  const DeviceArray<float> bias = PutArray(Ones(16));
  TwinDevice().FailCall("cudaLaunchKernel", 2, cudaErrorInvalidConfiguration);
  ops().AddBias(bias.data(), x);
  ops().GatedMul(Activation::kSilu, x, out);
  const uint64_t launches = TwinDevice().calls("cudaLaunchKernel"), copies = TwinDevice().calls("cudaMemcpyAsync");
  ops().AddBias(bias.data(), x);
  ops().Upload(bias.data(), x.buffer.data(), 4);
  ops().BeginStep({});
  EXPECT_EQ(TwinDevice().calls("cudaLaunchKernel"), launches);
  EXPECT_EQ(TwinDevice().calls("cudaMemcpyAsync"), copies);
  const auto names_it = AllOf(HasSubstr("CUDA device 0"), HasSubstr("GatedMul"), HasSubstr("InvalidConfiguration"));
  EXPECT_THAT(ops().status(), FailsWith(absl::StatusCode::kInternal, names_it));
  EXPECT_THAT(ops().Synchronize(), FailsWith(absl::StatusCode::kInternal, names_it));
  EXPECT_THAT(ops().Await(nullptr, 1, 1000), FailsWith(absl::StatusCode::kInternal, names_it));
  EXPECT_THAT(ops().Record([] {}, nullptr).status(), FailsWith(absl::StatusCode::kInternal, names_it));
}

// A kernel fails when nobody looks; the next look finds it, and says that only a new process helps.
TEST_F(CudaOpsTest, AKernelThatFaultsBreaksTheDevice) {
  for (const bool wait : {false, true}) {
    TwinDevice().Reset();
    UseCudaOps();
    const DeviceMatrix x = Put(HostMatrix(2, 16));
    const DeviceArray<float> bias = PutArray(Ones(16));
    TwinDevice().FailCall("kernel", 1, cudaErrorIllegalAddress);
    ops().AddBias(bias.data(), x);
    const absl::Status status = wait ? ops().Synchronize() : ops().status();
    EXPECT_THAT(status, FailsWith(absl::StatusCode::kUnavailable,
                                  AllOf(HasSubstr("AddBias"), HasSubstr("IllegalAddress"), HasSubstr("new process"))));
    const uint64_t launches = TwinDevice().calls("cudaLaunchKernel");
    ops().AddBias(bias.data(), x);
    EXPECT_EQ(TwinDevice().calls("cudaLaunchKernel"), launches);
    EXPECT_EQ(ops().Synchronize(), status);
  }
}

TEST_F(CudaOpsTest, AFailureDropsDownloads) {
  UseCudaOps();
  const DeviceArray<int32_t> array = PutArray<int32_t>({7});
  int32_t number = -1;
  ops().Download(array.data(), &number, sizeof number);
  TwinDevice().FailCall("cudaEventRecord", 1, cudaErrorInvalidResourceHandle);
  EXPECT_FALSE(ops().Synchronize().ok());
  EXPECT_EQ(number, -1);
}

// Work that waits in its stream shows who reads too early, and who reuses memory too early.
TEST_F(CudaOpsTest, HostMemoryIsTouchedOnlyInsideOfCalls) {
  UseCudaOps({.staging_bytes = 4096});
  TwinDevice().SetDeferred(true);
  for (const size_t count : {size_t{1}, size_t{200}, size_t{512}, size_t{5000}}) {
    std::vector<int32_t> numbers(count), sent;
    std::iota(numbers.begin(), numbers.end(), 10);
    sent = numbers;
    const DeviceBuffer buffer = std::move(ops().Allocate(count * sizeof(int32_t))).value();
    ops().Upload(numbers.data(), buffer.data(), count * sizeof(int32_t));
    numbers.assign(count, 2);
    std::vector<int32_t> back(count, 3);
    ops().Download(buffer.data(), back.data(), count * sizeof(int32_t));
    EXPECT_TRUE(count > 1 || back.front() == 3);
    ASSERT_TRUE(ops().Synchronize().ok());
    EXPECT_EQ(back, sent);
  }
}

TEST_F(CudaOpsTest, RowOperationsHaveNoRaces) {
  const HostMatrix x = RandomMatrix(3, 5000, 1), gain = RandomMatrix(1, 5000, 2);
  HostMatrix first;
  for (const uint64_t seed : {0, 1, 2, 3}) {
    TwinDevice().SetThreadOrderSeed(seed);
    UseCudaOps();
    const DeviceMatrix device_x = Put(x), out = Space(3, 5000);
    const DeviceArray<float> device_gain = PutArray(gain.values);
    ops().RmsNorm(device_x, device_gain.data(), 1e-6f, out);
    const HostMatrix result = Get(out);
    if (seed == 0) first = result;
    ExpectSameBits(result, first);
  }
}

// The fast path moves 16 bytes at a time, the other one element by element.
TEST_F(CudaOpsTest, AlignmentDoesNotShowInTheBits) {
  for (const DType dtype : {DType::kF32, DType::kBf16}) {
    UseCudaOps({.activation = dtype});
    const HostMatrix x = RandomMatrix(3, 2064, 1), y = RandomMatrix(3, 2064, 2);
    const DeviceArray<float> gain = PutArray(RandomMatrix(1, 2064, 3).values);
    std::vector<HostMatrix> normed, sums, products;
    for (const int64_t gap : {8, 0, 1, 4}) {
      const DeviceMatrix device_x = Put(x, dtype, gap), device_y = Put(y, dtype, gap), out = Put(x, dtype, gap),
                         half = Put(HostMatrix(3, 1032), dtype, gap);
      ops().GatedMul(Activation::kSilu, device_x, half);
      ops().AddRmsNorm(device_y, gain.data(), 1e-6f, device_x, out);
      normed.push_back(Get(out)), sums.push_back(Get(device_x)), products.push_back(Get(half));
      ExpectSameBits(normed.back(), normed.front());
      ExpectSameBits(sums.back(), sums.front());
      ExpectSameBits(products.back(), products.front());
    }
  }
}

TEST_F(CudaOpsTest, RecordingRefusesWhatNeedsTheHostAndGoesOnWithoutIt) {
  UseCudaOps();
  const DeviceMatrix x = Put(HostMatrix(1, 8));
  const DeviceArray<float> bias = PutArray(Ones(8));
  int32_t number = 0;
  const std::vector<std::pair<std::string, std::function<void()>>> forbidden = {
      {"Upload", [&] { ops().Upload(&number, x.buffer.data(), 4); }},
      {"Download", [&] { ops().Download(x.buffer.data(), &number, 4); }},
      {"Synchronize", [&] { EXPECT_FALSE(ops().Synchronize().ok()); }}};
  for (const auto& [name, call] : forbidden) {
    const auto program = ops().Record(
        [&] {
          ops().AddBias(bias.data(), x);
          call();
        },
        nullptr);
    EXPECT_THAT(program.status(), FailsWith(kFailedPrecondition, HasSubstr(name)));
    EXPECT_TRUE(ops().Synchronize().ok()) << name;
  }
  const auto program =
      ops().Record([&] { EXPECT_EQ(ops().Allocate(10).status().code(), kFailedPrecondition); }, nullptr);
  EXPECT_TRUE(program.ok()) << program.status();
  ops().AddBias(bias.data(), x);
  EXPECT_EQ(Get(x).at(0, 0), 1.0f);
}

TEST_F(CudaOpsTest, AFailureWhileRecordingNamesTheOperation) {
  UseCudaOps();
  const DeviceMatrix x = Put(HostMatrix(1, 8));
  const DeviceArray<float> bias = PutArray(Ones(8));
  const DeviceArray<int32_t> proceed = PutArray<int32_t>({0});
  for (const int32_t* const loop :
       {static_cast<const int32_t*>(nullptr), static_cast<const int32_t*>(proceed.data())}) {
    TwinDevice().FailCall("cudaLaunchKernel", 2, cudaErrorInvalidValue);
    const auto program = ops().Record(
        [&] {
          for (int i = 0; i < 2; ++i) ops().AddBias(bias.data(), x);
        },
        loop);
    EXPECT_THAT(program.status(), FailsWith(absl::StatusCode::kInternal, HasSubstr("AddBias")));
    EXPECT_TRUE(ops().Synchronize().ok());
  }
  EXPECT_EQ(Get(x).at(0, 0), 0.0f);
}

// The first use of a shape may be a recorded one.
TEST_F(CudaOpsTest, WorkspacesGrowWhileRecording) {
  UseCudaOps();
  const DeviceMatrix qkv = Put(RandomMatrix(3, 48, 1)), eager = Put(RandomMatrix(3, 48, 1)), keys = Space(3, 16),
                     values = Space(3, 16);
  const DeviceArray<int32_t> positions = PutArray<int32_t>({5, 6, 7}), slots = PutArray<int32_t>({0, 1, 2});
  const StepLayout layout = {.rows = 3, .positions = positions.data(), .slots = slots.data(), .page_size = 1};
  const size_t before = TwinDevice().allocated_bytes();
  const auto run = [&](const DeviceMatrix& m) {
    ops().BeginStep(layout);
    ops().RotateAndCache(layout, {}, 1, 1, {keys, values}, m);
  };
  const auto program = ops().Record([&] { run(qkv); }, nullptr);
  ASSERT_TRUE(program.ok()) << program.status();
  EXPECT_GT(TwinDevice().allocated_bytes(), before);
  (*program)->Launch();
  run(eager);
  ExpectSameBits(Get(qkv), Get(eager));
}

TEST_F(CudaOpsTest, LayersOfAStepShareTheirAngles) {
  UseCudaOps();
  const DeviceMatrix qkv = Put(RandomMatrix(3, 48, 1)), keys = Space(3, 16), values = Space(3, 16);
  const DeviceArray<int32_t> positions = PutArray<int32_t>({5, 6, 7}), slots = PutArray<int32_t>({0, 1, 2});
  const StepLayout layout = {.rows = 3, .positions = positions.data(), .slots = slots.data(), .page_size = 1};
  for (int step = 0; step < 2; ++step) {
    ops().BeginStep(layout);
    const uint64_t before = TwinDevice().calls("cudaLaunchKernel");
    for (int layer = 0; layer < 4; ++layer) ops().RotateAndCache(layout, {}, 1, 1, {keys, values}, qkv);
    EXPECT_EQ(TwinDevice().calls("cudaLaunchKernel") - before, 5u);
  }
}

// At small batches a layer costs what its launches cost.
TEST_F(CudaOpsTest, ALayerIsNineLaunches) {
  UseCudaOps(FastOptions());
  const int64_t rows = 8, hidden = 128, mlp = 64, qkv_cols = (2 + 2) * 64;
  const std::unique_ptr<GemmWeight> in = Prepare(RandomMatrix(qkv_cols, hidden, 1)),
                                    out = Prepare(RandomMatrix(hidden, 2 * 64, 2)),
                                    up = Prepare(RandomMatrix(2 * mlp, hidden, 3)),
                                    down = Prepare(RandomMatrix(hidden, mlp, 4));
  const auto space = [&](int64_t n, int64_t cols) { return Put(RandomMatrix(n, cols, 5), dtype(), /*gap=*/0); };
  const DeviceMatrix x = space(rows, hidden), normed = space(rows, hidden), qkv = space(rows, qkv_cols),
                     mixed = space(rows, 2 * 64), partial = space(rows, hidden), gate_up = space(rows, 2 * mlp),
                     half = space(rows, mlp), keys = space(16, 64), values = space(16, 64);
  const DeviceArray<float> gain = PutArray(Ones(hidden)), head_gain = PutArray(Ones(64));
  const DeviceArray<int32_t> positions = PutArray<int32_t>({0, 1, 2, 3, 4, 5, 6, 7}), page = PutArray<int32_t>({0});
  const DeviceArray<AttentionSegment> segment = PutArray<AttentionSegment>({{.rows = 8, .keys = 8, .block_length = 8}});
  const StepLayout layout = {.rows = 8,
                             .positions = positions.data(),
                             .slots = positions.data(),
                             .segments = segment.data(),
                             .segments_count = 1,
                             .page_table = page.data(),
                             .page_size = 16,
                             .rows_max = 8,
                             .keys_max = 8};
  const HeadTransform transform = {.q_gain = head_gain.data(), .k_gain = head_gain.data()};
  const auto layer = [&] {
    ops().Gemm(normed, *in, qkv);
    ops().RotateAndCache(layout, transform, 2, 1, {keys, values}, qkv);
    ops().Attention(layout, ColumnBand(qkv, 0, 2 * 64), 2, 1, AttentionRule(), {keys, values}, mixed);
    ops().Gemm(mixed, *out, partial);
    ops().AddRmsNorm(partial, gain.data(), 1e-6f, x, normed);
    ops().Gemm(normed, *up, gate_up);
    ops().GatedMul(Activation::kSilu, gate_up, half);
    ops().Gemm(half, *down, partial);
    ops().AddRmsNorm(partial, gain.data(), 1e-6f, x, normed);
  };
  ops().BeginStep(layout);
  layer();  // Makes plans, and the step's work list and angles.
  const uint64_t kernels = TwinDevice().calls("cudaLaunchKernel"), products = TwinDevice().calls("cublasLtMatmul"),
                 copies = TwinDevice().calls("cudaMemcpyAsync"), fills = TwinDevice().calls("cudaMemsetAsync");
  layer();
  ASSERT_TRUE(ops().Synchronize().ok());
  EXPECT_EQ(TwinDevice().calls("cudaLaunchKernel") - kernels, 5u);
  EXPECT_EQ(TwinDevice().calls("cublasLtMatmul") - products, 4u);
  EXPECT_EQ(TwinDevice().calls("cudaMemcpyAsync") - copies, 0u);
  EXPECT_EQ(TwinDevice().calls("cudaMemsetAsync") - fills, 0u);
}

TEST_F(CudaOpsTest, AProgramDoesNothingAfterAFailure) {
  UseCudaOps();
  const DeviceMatrix x = Put(HostMatrix(1, 8));
  const DeviceArray<float> bias = PutArray(Ones(8));
  const auto program = ops().Record([&] { ops().AddBias(bias.data(), x); }, nullptr);
  ASSERT_TRUE(program.ok()) << program.status();
  TwinDevice().FailCall("cudaGraphLaunch", 1, cudaErrorInvalidValue);
  (*program)->Launch();
  EXPECT_THAT(ops().status(), FailsWith(absl::StatusCode::kInternal, HasSubstr("recorded program")));
  const uint64_t launches = TwinDevice().calls("cudaGraphLaunch");
  (*program)->Launch();
  EXPECT_EQ(TwinDevice().calls("cudaGraphLaunch"), launches);
}

TEST_F(CudaOpsTest, WorkOfOthersOnItsStreamIsInOrder) {
  UseCudaOps({.activation = DType::kF32});
  TwinDevice().SetDeferred(true);
  const DeviceMatrix x = Put(HostMatrix(1, 8), DType::kF32, /*gap=*/0);
  const DeviceArray<float> bias = PutArray(Ones(8));
  ops().AddBias(bias.data(), x);
  ASSERT_EQ(cudaMemsetAsync(x.buffer.data(), 0, 4, CudaStreamOf(ops())), cudaSuccess);
  ops().AddBias(bias.data(), x);
  const HostMatrix result = Get(x);
  EXPECT_EQ(result.at(0, 0), 1.0f);
  EXPECT_EQ(result.at(0, 1), 2.0f);
}

}  // namespace
}  // namespace quicksilver
