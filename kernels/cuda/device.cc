#include "kernels/cuda/device.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"

namespace quicksilver {
namespace {

// What CMAKE_CUDA_ARCHITECTURES builds, and runs nowhere else.
constexpr int kMajor = 9;
constexpr int kMinor = 0;

std::string VersionText(int version) { return absl::StrCat(version / 1000, ".", version % 1000 / 10); }

absl::Status CheckDriver() {
  int driver = 0;
  RETURN_IF_ERROR(CudaStatus(cudaDriverGetVersion(&driver), "cudaDriverGetVersion"));
  if (driver == 0) return absl::FailedPreconditionError("this machine has no NVIDIA driver");
  // A driver runs everything of its own major version.
  if (driver / 1000 < CUDART_VERSION / 1000) {
    return absl::FailedPreconditionError(absl::StrCat("the NVIDIA driver supports CUDA ", VersionText(driver),
                                                      ", this program needs ", CUDART_VERSION / 1000, ".0"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  RETURN_IF_ERROR(CudaStatus(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute"));
  return value;
}

}  // namespace

absl::StatusOr<CudaDevice> DescribeCudaDevice(int32_t ordinal) {
  RETURN_IF_ERROR(CheckDriver());
  int count = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaErrorNoDevice) RETURN_IF_ERROR(CudaStatus(counted, "cudaGetDeviceCount"));
  if (count == 0) {
    cudaGetLastError();
    return absl::FailedPreconditionError("this machine has an NVIDIA driver, but no device that it lets us use");
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no CUDA device ", ordinal, ": this machine has ", count, ", counted from 0"));
  }
  ASSIGN_OR_RETURN(const int major, Attribute(cudaDevAttrComputeCapabilityMajor, ordinal));
  ASSIGN_OR_RETURN(const int minor, Attribute(cudaDevAttrComputeCapabilityMinor, ordinal));
  cudaDeviceProp properties = {};
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties"));
  if (major != kMajor || minor != kMinor) {
    return absl::FailedPreconditionError(absl::StrCat("CUDA device ", ordinal, " (", properties.name,
                                                      ") has compute capability ", major, ".", minor,
                                                      ", the kernels are built for ", kMajor, ".", kMinor));
  }
  return CudaDevice{ordinal, properties.name, properties.multiProcessorCount,
                    static_cast<int64_t>(properties.totalGlobalMem)};
}

absl::StatusOr<CudaDevice> OpenCudaDevice(int32_t ordinal) {
  ASSIGN_OR_RETURN(CudaDevice device, DescribeCudaDevice(ordinal));
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(ordinal), "cudaSetDevice"));
  return device;
}

absl::StatusOr<CudaStream> MakeCudaStream() {
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"));
  return CudaStream(stream);
}

}  // namespace quicksilver
