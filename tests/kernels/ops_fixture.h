#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/support/random_matrix.h"

namespace quicksilver {

/// One implementation and activation type that the conformance suite runs on.
struct OpsUnderTest {
  std::string name;  ///< Letters, digits and underscores.
  std::function<absl::StatusOr<std::unique_ptr<Ops>>()> make;
  /// Why this machine cannot run it, or "". Whatever else fails is a failure of the test.
  std::function<std::string()> missing = [] { return std::string(); };
};

inline void PrintTo(const OpsUnderTest& param, std::ostream* os) { *os << param.name; }

/// Those of this test program: it links one file that says which. So every suite runs on every implementation.
std::vector<OpsUnderTest> AllOpsUnderTest();

/// Those whose layers are of a reduced precision: they round more than the suites' tolerances, but keep rows apart.
std::vector<OpsUnderTest> CoarseOpsUnderTest();

/// A matrix in device memory, with its memory.
struct DeviceMatrix {
  DeviceBuffer buffer;
  Matrix view;

  operator Matrix() const { return view; }       // NOLINT: it is one
  operator ConstMatrix() const { return view; }  // NOLINT: it is one
};

/// An array in device memory.
template <typename T>
struct DeviceArray {
  DeviceBuffer buffer;
  size_t count = 0;

  T* data() const { return static_cast<T*>(buffer.data()); }
};

/// Moves test data to and from a device through the interface alone. Rows on the device are wider than the matrix: what
/// lies between them must come back untouched, and does not count as input.
class OpsTestBase : public ::testing::Test {
 public:
  void UseOps(std::unique_ptr<Ops> ops) { ops_ = std::move(ops); }
  Ops& ops() { return *ops_; }
  DType dtype() const { return ops_->activation_dtype(); }

  /// Rounds to the activation type, or to `dtype`.
  DeviceMatrix Put(const HostMatrix& m) { return Put(m, dtype()); }
  DeviceMatrix Put(const HostMatrix& m, DType dtype, int64_t gap = 3);
  DeviceMatrix Space(int64_t rows, int64_t cols) { return Put(HostMatrix(rows, cols)); }
  /// Fails the test when an operation wrote between the rows.
  HostMatrix Get(const DeviceMatrix& m);

  template <typename T>
  DeviceArray<T> PutArray(const std::vector<T>& values) {
    DeviceArray<T> array{Buffer(values.size() * sizeof(T)), values.size()};
    ops_->Upload(values.data(), array.buffer.data(), values.size() * sizeof(T));
    EXPECT_TRUE(ops_->Synchronize().ok());
    return array;
  }

  template <typename T>
  std::vector<T> GetArray(const DeviceArray<T>& array) {
    std::vector<T> values(array.count);
    ops_->Download(array.buffer.data(), values.data(), values.size() * sizeof(T));
    EXPECT_TRUE(ops_->Synchronize().ok());
    return values;
  }

  std::unique_ptr<GemmWeight> Prepare(const HostMatrix& m, DType dtype = DType::kF32);

 private:
  DeviceBuffer Buffer(size_t bytes);

  std::unique_ptr<Ops> ops_;
};

class OpsTest : public OpsTestBase, public ::testing::WithParamInterface<OpsUnderTest> {
 protected:
  void SetUp() override {
    if (const std::string missing = GetParam().missing(); !missing.empty()) GTEST_SKIP() << missing;
    absl::StatusOr<std::unique_ptr<Ops>> ops = GetParam().make();
    ASSERT_TRUE(ops.ok()) << ops.status();
    UseOps(*std::move(ops));
  }
};

#define INSTANTIATE_OPS_TEST(suite)                         \
  INSTANTIATE_TEST_SUITE_P(                                 \
      Every, suite, ::testing::ValuesIn(AllOpsUnderTest()), \
      [](const ::testing::TestParamInfo<OpsUnderTest>& param_info) { return param_info.param.name; })

/// |actual - expected| <= relative * |expected| + absolute, everywhere.
void ExpectNear(const HostMatrix& actual, const HostMatrix& expected, double relative, double absolute);

/// The same bits, everywhere.
void ExpectSameBits(const HostMatrix& actual, const HostMatrix& expected);

/// Half a step of the activation type, relative: one rounding.
inline double RoundingError(DType dtype) { return dtype == DType::kF32 ? 0x1p-24 : 0x1p-8; }

}  // namespace quicksilver
