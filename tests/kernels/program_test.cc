#include <algorithm>

#include "tests/kernels/rotate_case.h"

namespace quicksilver {
namespace {

/// Recorded work: a launch does what the operations would do now, on what the memory holds now.
class ProgramTest : public OpsTest {
 protected:
  std::unique_ptr<Program> Record(const std::function<void()>& enqueue, const int32_t* proceed = nullptr) {
    absl::StatusOr<std::unique_ptr<Program>> program = ops().Record(enqueue, proceed);
    EXPECT_TRUE(program.ok()) << program.status();
    return *std::move(program);
  }

  void Write(const DeviceMatrix& to, const HostMatrix& m) {
    const DeviceMatrix from = Put(m);
    std::vector<int32_t> rows(static_cast<size_t>(m.rows));
    for (size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<int32_t>(r);
    const DeviceArray<int32_t> device_rows = PutArray(rows);
    ops().GatherRows(from, device_rows.data(), to);
    EXPECT_TRUE(ops().Synchronize().ok());
  }

  /// Four bytes that count down by 1 in every pass of Tick(), as numbers of the activation type, whose 0 is the word 0.
  DeviceMatrix Countdown() { return Put(HostMatrix(1, WordColumns()), dtype(), /*gap=*/0); }
  void SetCountdown(const DeviceMatrix& countdown, float passes) {
    HostMatrix m(1, WordColumns());
    std::fill(m.values.begin(), m.values.end(), passes);
    Write(countdown, m);
  }
  DeviceArray<float> MinusOnes() { return PutArray(std::vector<float>(static_cast<size_t>(WordColumns()), -1.0f)); }

 private:
  int64_t WordColumns() { return 4 / static_cast<int64_t>(ElementBytes(dtype())); }
};

TEST_P(ProgramTest, RecordingRunsNothing) {
  const HostMatrix x = Rounded(RandomMatrix(3, 20, 1), dtype());
  const DeviceMatrix device_x = Put(x);
  const DeviceArray<float> bias = PutArray(std::vector<float>(20, 1.0f));
  const std::unique_ptr<Program> program = Record([&] { ops().AddBias(bias.data(), device_x); });
  ASSERT_TRUE(ops().Synchronize().ok());
  ExpectSameBits(Get(device_x), x);
}

TEST_P(ProgramTest, EveryLaunchWorksOnWhatTheMemoryHoldsThen) {
  const DeviceArray<float> gain = PutArray(RandomMatrix(1, 48, 5).values);
  const DeviceMatrix x = Space(5, 96), half = Space(5, 48), out = Space(5, 48);
  const auto run = [&] {
    ops().GatedMul(Activation::kSilu, x, half);
    ops().RmsNorm(half, gain.data(), 1e-6f, out);
  };
  const std::unique_ptr<Program> program = Record(run);
  for (const uint32_t seed : {1u, 2u, 3u}) {
    const HostMatrix in = RandomMatrix(5, 96, seed);
    Write(x, in);
    program->Launch();
    const HostMatrix launched = Get(out);
    Write(x, in);
    run();
    ExpectSameBits(launched, Get(out));
  }
}

TEST_P(ProgramTest, LaunchesAreInOrderWithEverythingElse) {
  const DeviceMatrix x = Put(HostMatrix(2, 9));
  const DeviceArray<float> one = PutArray(std::vector<float>(9, 1.0f)), ten = PutArray(std::vector<float>(9, 10.0f));
  const std::unique_ptr<Program> add_one = Record([&] { ops().AddBias(one.data(), x); });
  const std::unique_ptr<Program> add_ten = Record([&] { ops().AddBias(ten.data(), x); });
  add_one->Launch();
  add_ten->Launch();
  add_one->Launch();
  ops().AddBias(ten.data(), x);
  HostMatrix expected(2, 9);
  std::fill(expected.values.begin(), expected.values.end(), 22.0f);
  ExpectSameBits(Get(x), expected);
}

TEST_P(ProgramTest, ALoopRunsUntilTheDeviceFindsZero) {
  const DeviceMatrix countdown = Countdown(), passes = Put(HostMatrix(1, 3));
  const DeviceArray<float> minus_one = MinusOnes(), one = PutArray(std::vector<float>(3, 1.0f));
  const std::unique_ptr<Program> program = Record(
      [&] {
        ops().AddBias(one.data(), passes);
        ops().AddBias(minus_one.data(), countdown);
      },
      static_cast<const int32_t*>(countdown.buffer.data()));
  float expected = 0.0f;
  for (const float count : {3.0f, 1.0f, 6.0f}) {
    SetCountdown(countdown, count);
    program->Launch();
    expected += count;
    EXPECT_EQ(Get(passes).at(0, 2), expected);
  }
}

TEST_P(ProgramTest, ALoopGoesOnForAnyOtherNumberThanZero) {
  const DeviceArray<int32_t> first = PutArray<int32_t>({0});
  const DeviceArray<uint32_t> zero = PutArray<uint32_t>({0}), next = PutArray<uint32_t>({0}),
                              proceed = PutArray<uint32_t>({0});
  const DeviceMatrix passes = Put(HostMatrix(1, 1));
  const DeviceArray<float> one = PutArray(std::vector<float>{1.0f});
  // Words as floats: copied, not computed with.
  const auto copy = [&](const DeviceArray<uint32_t>& from, const DeviceArray<uint32_t>& to) {
    ops().GatherRows({from.data(), 1, 1, 1, DType::kF32}, first.data(), {to.data(), 1, 1, 1, DType::kF32});
  };
  const std::unique_ptr<Program> program = Record(
      [&] {
        ops().AddBias(one.data(), passes);
        copy(next, proceed);
        copy(zero, next);
      },
      reinterpret_cast<const int32_t*>(proceed.data()));
  float expected = 0.0f;
  for (const uint32_t word : {0u, 1u, 2u, 0xFFFFFFFFu, 0x80000000u}) {
    ops().Upload(&word, next.data(), sizeof word);
    program->Launch();
    expected += word == 0 ? 1.0f : 2.0f;
    EXPECT_EQ(Get(passes).at(0, 0), expected) << word;
  }
}

TEST_P(ProgramTest, AnglesFollowThePositionsOfEachLaunch) {
  const RotateCase rotate = {.heads = 2, .kv_heads = 1, .head_size = 24};
  const HostMatrix qkv = RandomMatrix(3, rotate.cols(), 1);
  const DeviceMatrix device = Put(qkv), keys = Space(4, 24), values = Space(4, 24);
  const DeviceArray<int32_t> positions = PutArray<int32_t>({0, 0, 0}), slots = PutArray<int32_t>({0, 1, 2});
  const StepLayout layout = {.rows = 3, .positions = positions.data(), .slots = slots.data(), .page_size = 1};
  const std::unique_ptr<Program> program = Record([&] {
    ops().BeginStep(layout);
    ops().RotateAndCache(layout, {.rope = rotate.rope}, 2, 1, {keys, values}, device);
  });
  for (const std::vector<int32_t>& at : {std::vector<int32_t>{7, 8, 9}, {4000, 1, 30}}) {
    Write(device, qkv);
    ops().Upload(at.data(), positions.data(), at.size() * sizeof(int32_t));
    program->Launch();
    const HostMatrix launched = Get(device);
    ExpectSameBits(launched, RunRotate(*this, rotate, qkv, at, {0, 1, 2}).qkv);
  }
}

INSTANTIATE_OPS_TEST(ProgramTest);

}  // namespace
}  // namespace quicksilver
