#include <algorithm>
#include <iterator>

#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace {

struct NamedError {
  cudaError_t error;
  const char* name;
};

#define QS_TWIN_NAMED(error) \
  { error, #error }
constexpr NamedError kErrors[] = {
    QS_TWIN_NAMED(cudaSuccess),
    QS_TWIN_NAMED(cudaErrorInvalidValue),
    QS_TWIN_NAMED(cudaErrorMemoryAllocation),
    QS_TWIN_NAMED(cudaErrorInitializationError),
    QS_TWIN_NAMED(cudaErrorInvalidConfiguration),
    QS_TWIN_NAMED(cudaErrorInvalidMemcpyDirection),
    QS_TWIN_NAMED(cudaErrorInsufficientDriver),
    QS_TWIN_NAMED(cudaErrorDevicesUnavailable),
    QS_TWIN_NAMED(cudaErrorInvalidDeviceFunction),
    QS_TWIN_NAMED(cudaErrorNoDevice),
    QS_TWIN_NAMED(cudaErrorInvalidDevice),
    QS_TWIN_NAMED(cudaErrorNoKernelImageForDevice),
    QS_TWIN_NAMED(cudaErrorECCUncorrectable),
    QS_TWIN_NAMED(cudaErrorPeerAccessUnsupported),
    QS_TWIN_NAMED(cudaErrorInvalidPtx),
    QS_TWIN_NAMED(cudaErrorNvlinkUncorrectable),
    QS_TWIN_NAMED(cudaErrorUnsupportedPtxVersion),
    QS_TWIN_NAMED(cudaErrorContained),
    QS_TWIN_NAMED(cudaErrorMapBufferObjectFailed),
    QS_TWIN_NAMED(cudaErrorAlreadyMapped),
    QS_TWIN_NAMED(cudaErrorSharedObjectInitFailed),
    QS_TWIN_NAMED(cudaErrorOperatingSystem),
    QS_TWIN_NAMED(cudaErrorInvalidResourceHandle),
    QS_TWIN_NAMED(cudaErrorIllegalState),
    QS_TWIN_NAMED(cudaErrorSymbolNotFound),
    QS_TWIN_NAMED(cudaErrorNotReady),
    QS_TWIN_NAMED(cudaErrorIllegalAddress),
    QS_TWIN_NAMED(cudaErrorLaunchOutOfResources),
    QS_TWIN_NAMED(cudaErrorLaunchTimeout),
    QS_TWIN_NAMED(cudaErrorPeerAccessAlreadyEnabled),
    QS_TWIN_NAMED(cudaErrorPeerAccessNotEnabled),
    QS_TWIN_NAMED(cudaErrorContextIsDestroyed),
    QS_TWIN_NAMED(cudaErrorAssert),
    QS_TWIN_NAMED(cudaErrorHostMemoryAlreadyRegistered),
    QS_TWIN_NAMED(cudaErrorHostMemoryNotRegistered),
    QS_TWIN_NAMED(cudaErrorHardwareStackError),
    QS_TWIN_NAMED(cudaErrorIllegalInstruction),
    QS_TWIN_NAMED(cudaErrorMisalignedAddress),
    QS_TWIN_NAMED(cudaErrorInvalidAddressSpace),
    QS_TWIN_NAMED(cudaErrorInvalidPc),
    QS_TWIN_NAMED(cudaErrorLaunchFailure),
    QS_TWIN_NAMED(cudaErrorCooperativeLaunchTooLarge),
    QS_TWIN_NAMED(cudaErrorTensorMemoryLeak),
    QS_TWIN_NAMED(cudaErrorNotPermitted),
    QS_TWIN_NAMED(cudaErrorNotSupported),
    QS_TWIN_NAMED(cudaErrorSystemNotReady),
    QS_TWIN_NAMED(cudaErrorSystemDriverMismatch),
    QS_TWIN_NAMED(cudaErrorMpsClientTerminated),
    QS_TWIN_NAMED(cudaErrorStreamCaptureUnsupported),
    QS_TWIN_NAMED(cudaErrorStreamCaptureInvalidated),
    QS_TWIN_NAMED(cudaErrorStreamCaptureMerge),
    QS_TWIN_NAMED(cudaErrorStreamCaptureUnmatched),
    QS_TWIN_NAMED(cudaErrorStreamCaptureUnjoined),
    QS_TWIN_NAMED(cudaErrorStreamCaptureIsolation),
    QS_TWIN_NAMED(cudaErrorStreamCaptureImplicit),
    QS_TWIN_NAMED(cudaErrorCapturedEvent),
    QS_TWIN_NAMED(cudaErrorStreamCaptureWrongThread),
    QS_TWIN_NAMED(cudaErrorTimeout),
    QS_TWIN_NAMED(cudaErrorGraphExecUpdateFailure),
    QS_TWIN_NAMED(cudaErrorExternalDevice),
    QS_TWIN_NAMED(cudaErrorUnknown),
};
#undef QS_TWIN_NAMED

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  const auto* found =
      std::find_if(std::begin(kErrors), std::end(kErrors), [=](const NamedError& e) { return e.error == error; });
  return found != std::end(kErrors) ? found->name : "unrecognized error code";
}

// The real texts are sentences; the names say as much.
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaSuccess) return "no error";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return cudaGetErrorName(error);
}
