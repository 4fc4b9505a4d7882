#include "tests/kernels/ops_fixture.h"

#include <cmath>

namespace quicksilver {
namespace {

constexpr float kGapValue = 12352.0f;  // A bf16 number.

}  // namespace

DeviceBuffer OpsTestBase::Buffer(size_t bytes) {
  absl::StatusOr<DeviceBuffer> buffer = ops_->Allocate(bytes);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return std::move(buffer).value();
}

DeviceMatrix OpsTestBase::Put(const HostMatrix& m, DType dtype, int64_t gap) {
  const int64_t stride = m.cols + gap;
  const size_t bytes = static_cast<size_t>(m.rows * stride) * ElementBytes(dtype);
  std::vector<float> wide(static_cast<size_t>(m.rows * stride), kGapValue);
  for (int64_t r = 0; r < m.rows; ++r) std::copy_n(m.row(r), m.cols, wide.begin() + r * stride);
  std::vector<uint16_t> narrow;
  for (const float value : wide) narrow.push_back(FloatToBf16(value));
  DeviceMatrix device{Buffer(bytes), {}};
  device.view = {device.buffer.data(), m.rows, m.cols, stride, dtype};
  ops_->Upload(dtype == DType::kF32 ? static_cast<const void*>(wide.data()) : narrow.data(), device.buffer.data(),
               bytes);
  EXPECT_TRUE(ops_->Synchronize().ok());
  return device;
}

HostMatrix OpsTestBase::Get(const DeviceMatrix& m) {
  const Matrix& view = m.view;
  std::vector<float> wide(static_cast<size_t>(view.rows * view.stride));
  std::vector<uint16_t> narrow(wide.size());
  const bool f32 = view.dtype == DType::kF32;
  ops_->Download(view.data, f32 ? static_cast<void*>(wide.data()) : narrow.data(),
                 wide.size() * ElementBytes(view.dtype));
  EXPECT_TRUE(ops_->Synchronize().ok());
  HostMatrix host(view.rows, view.cols);
  for (int64_t r = 0; r < view.rows; ++r) {
    for (int64_t c = 0; c < view.stride; ++c) {
      const size_t i = static_cast<size_t>(r * view.stride + c);
      const float value = f32 ? wide[i] : Bf16ToFloat(narrow[i]);
      if (c < view.cols) {
        host.at(r, c) = value;
      } else {
        EXPECT_EQ(value, kGapValue) << "written between the rows, at row " << r << ", column " << c;
      }
    }
  }
  return host;
}

std::unique_ptr<GemmWeight> OpsTestBase::Prepare(const HostMatrix& m, DType dtype) {
  std::vector<uint16_t> narrow;
  for (const float value : m.values) narrow.push_back(FloatToBf16(value));
  const void* data = dtype == DType::kF32 ? static_cast<const void*>(m.values.data()) : narrow.data();
  absl::StatusOr<std::unique_ptr<GemmWeight>> weight =
      ops_->PrepareWeight({data, m.rows, m.cols, m.cols, dtype}, WeightRole::kLayer);
  EXPECT_TRUE(weight.ok()) << weight.status();
  return std::move(weight).value();
}

void ExpectNear(const HostMatrix& actual, const HostMatrix& expected, double relative, double absolute) {
  ASSERT_EQ(actual.rows, expected.rows);
  ASSERT_EQ(actual.cols, expected.cols);
  for (int64_t r = 0; r < actual.rows; ++r) {
    for (int64_t c = 0; c < actual.cols; ++c) {
      const double bound = relative * std::abs(expected.at(r, c)) + absolute;
      ASSERT_NEAR(actual.at(r, c), expected.at(r, c), bound) << "row " << r << ", column " << c;
    }
  }
}

void ExpectSameBits(const HostMatrix& actual, const HostMatrix& expected) {
  ASSERT_EQ(actual.rows, expected.rows);
  ASSERT_EQ(actual.cols, expected.cols);
  for (int64_t r = 0; r < actual.rows; ++r) {
    for (int64_t c = 0; c < actual.cols; ++c) {
      ASSERT_EQ(BitsOfFloat(actual.at(r, c)), BitsOfFloat(expected.at(r, c)))
          << "row " << r << ", column " << c << ": " << actual.at(r, c) << " and " << expected.at(r, c);
    }
  }
}

}  // namespace quicksilver
