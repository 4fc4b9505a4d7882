#include "kernels/cuda/cuda_error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

static_assert(IsSticky(cudaErrorIllegalAddress) && IsSticky(cudaErrorECCUncorrectable) &&
              IsSticky(cudaErrorLaunchFailure) && IsSticky(cudaErrorHardwareStackError));
static_assert(!IsSticky(cudaSuccess) && !IsSticky(cudaErrorNotReady) && !IsSticky(cudaErrorMemoryAllocation) &&
              !IsSticky(cudaErrorInvalidValue) && !IsSticky(cudaErrorStreamCaptureInvalidated));

TEST(CudaErrorTest, AStickyErrorNamesTheCallAndWhatHelps) {
  const absl::Status status = CudaStatus(cudaErrorIllegalAddress, "cudaEventQuery");
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cudaEventQuery: "), HasSubstr("(cudaErrorIllegalAddress, 700)"),
                    HasSubstr("only a new process recovers")));
}

TEST(CudaErrorTest, ErrorsThatAProcessSurvivesKeepTheirMeaning) {
  EXPECT_TRUE(CudaStatus(cudaSuccess, "cudaMalloc").ok());
  EXPECT_TRUE(absl::IsResourceExhausted(CudaStatus(cudaErrorMemoryAllocation, "cudaMalloc")));
  EXPECT_TRUE(absl::IsFailedPrecondition(CudaStatus(cudaErrorNoDevice, "cudaGetDeviceCount")));
  EXPECT_TRUE(absl::IsFailedPrecondition(CudaStatus(cudaErrorInsufficientDriver, "cudaGetDeviceCount")));
  const absl::Status bug = CudaStatus(cudaErrorInvalidValue, "cudaMemcpyAsync");
  EXPECT_TRUE(absl::IsInternal(bug));
  EXPECT_THAT(std::string(bug.message()), HasSubstr("cudaMemcpyAsync: "));
}

}  // namespace
}  // namespace quicksilver
