#include "tests/support/cuda_twin/device.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

#include "common/mutex.h"
#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/launch.h"
#include "tests/support/cuda_twin/memory.h"
#include "tests/support/cuda_twin/stream.h"

namespace quicksilver::cuda_twin {
namespace {

struct PlannedFailure {
  std::string function;  // "" = any.
  int calls_left = 0;
  cudaError_t error = cudaSuccess;
};

struct Calls {
  Mutex mu;
  std::map<std::string, uint64_t> counts;
  std::vector<PlannedFailure> planned;
  std::map<int, cudaError_t> broken;  // By device.
  std::map<const void*, int> dynamic_shared;
  DeviceSettings settings;
};

Calls& State() {
  static auto* calls = new Calls;
  return *calls;
}

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

bool BreaksContext(cudaError_t error) {
  return (error >= cudaErrorIllegalAddress && error <= cudaErrorLaunchTimeout &&
          error != cudaErrorLaunchOutOfResources) ||
         error == cudaErrorAssert || (error >= cudaErrorHardwareStackError && error <= cudaErrorLaunchFailure) ||
         error == cudaErrorECCUncorrectable;
}

// Counts and returns what is planned for this call.
cudaError_t CountCall(const char* function) {
  Calls& state = State();
  MutexLock lock(state.mu);
  ++state.counts[function];
  for (PlannedFailure& plan : state.planned) {
    if (plan.calls_left > 0 && (plan.function.empty() || plan.function == function) && --plan.calls_left == 0) {
      return plan.error;
    }
  }
  return cudaSuccess;
}

cudaError_t CheckDevice(int device) {
  const DeviceSettings settings = GetDeviceSettings();
  if (settings.count == 0) return cudaErrorNoDevice;
  return device >= 0 && device < settings.count ? cudaSuccess : cudaErrorInvalidDevice;
}

// What the driver refuses.
cudaError_t CheckLaunch(const cudaLaunchConfig_t& config, const void* function, bool cooperative) {
  const dim3 grid = config.gridDim;
  const dim3 block = config.blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kThreadsMax || block.x > 1024 || block.y > 1024 || block.z > 64) {
    return cudaErrorInvalidConfiguration;
  }
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  size_t shared_max = kSharedDefaultMax;
  {
    MutexLock lock(State().mu);
    const auto at = State().dynamic_shared.find(function);
    if (at != State().dynamic_shared.end()) shared_max = static_cast<size_t>(at->second);
  }
  if (config.dynamicSmemBytes > shared_max) return cudaErrorInvalidValue;
  int per_processor = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, function, static_cast<int>(threads),
                                                config.dynamicSmemBytes);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (cooperative && blocks > static_cast<uint64_t>(per_processor) * kProcessors)
    return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

bool IsCooperative(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeCooperative && config.attrs[i].val.cooperative != 0) return true;
  }
  return false;
}

}  // namespace

void SetDeviceSettings(const DeviceSettings& settings) {
  MutexLock lock(State().mu);
  State().settings = settings;
}

DeviceSettings GetDeviceSettings() {
  MutexLock lock(State().mu);
  return State().settings;
}

cudaError_t EnterCall(const char* function) {
  if (const cudaError_t error = CountCall(function); error != cudaSuccess) return error;
  return BrokenContext();
}

cudaError_t LeaveCall(cudaError_t error) {
  if (error == cudaSuccess || error == cudaErrorNotReady) return error;
  last_error = error;
  if (BreaksContext(error)) BreakContext(error);
  return error;
}

void BreakContext(cudaError_t error) {
  MutexLock lock(State().mu);
  State().broken.try_emplace(current_device, error);
}

cudaError_t BrokenContext() {
  MutexLock lock(State().mu);
  const auto at = State().broken.find(current_device);
  return at == State().broken.end() ? cudaSuccess : at->second;
}

int CurrentDevice() { return current_device; }

void ResetCalls() {
  MutexLock lock(State().mu);
  State().counts.clear();
  State().planned.clear();
  State().broken.clear();
  last_error = cudaSuccess;
}

void PlanFailure(const std::string& function, int nth, cudaError_t error) {
  MutexLock lock(State().mu);
  State().planned.push_back({function, nth, error});
}

uint64_t CallsCount(const std::string& function) {
  MutexLock lock(State().mu);
  const auto at = State().counts.find(function);
  return at == State().counts.end() ? 0 : at->second;
}

cudaError_t LaunchKernel(const cudaLaunchConfig_t& config, KernelCall call, std::shared_ptr<const void> owner) {
  return Api("cudaLaunchKernel", [&] {
    call.cooperative = IsCooperative(config);
    if (const cudaError_t error = CheckLaunch(config, call.function, call.cooperative); error != cudaSuccess)
      return error;
    call.grid = config.gridDim;
    call.block = config.blockDim;
    call.shared_bytes = config.dynamicSmemBytes;
    return Submit(config.stream, cudaGraphNodeTypeKernel, [call, owner = std::move(owner)] {
      const cudaError_t error = CountCall("kernel");
      if (error == cudaSuccess) {
        RunKernel(call);
      } else {
        BreakContext(error);
      }
    });
  });
}

}  // namespace quicksilver::cuda_twin

using namespace quicksilver::cuda_twin;
using quicksilver::MutexLock;

cudaError_t cudaGetLastError() {
  const cudaError_t broken = BrokenContext();
  const cudaError_t error = broken != cudaSuccess ? broken : last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  const cudaError_t broken = BrokenContext();
  return broken != cudaSuccess ? broken : last_error;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = GetDeviceSettings().driver;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  return Api("cudaGetDeviceCount", [&] {
    *count = GetDeviceSettings().count;
    if (GetDeviceSettings().driver < CUDART_VERSION) return cudaErrorInsufficientDriver;
    return *count == 0 ? cudaErrorNoDevice : cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return Api("cudaSetDevice", [&] {
    const cudaError_t error = CheckDevice(device);
    if (error == cudaSuccess) current_device = device;
    return error;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return Api("cudaGetDevice", [&] {
    *device = current_device;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return Api("cudaDeviceGetAttribute", [&] {
    if (const cudaError_t error = CheckDevice(device); error != cudaSuccess) return error;
    const DeviceSettings settings = GetDeviceSettings();
    const std::map<cudaDeviceAttr, int> values = {
        {cudaDevAttrMaxThreadsPerBlock, kThreadsMax},
        {cudaDevAttrMaxSharedMemoryPerBlock, kSharedDefaultMax},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrClockRate, 1980000},
        {cudaDevAttrMultiProcessorCount, kProcessors},
        {cudaDevAttrIntegrated, 0},
        {cudaDevAttrCanMapHostMemory, 1},
        {cudaDevAttrConcurrentKernels, 1},
        {cudaDevAttrMemoryClockRate, 2619000},
        {cudaDevAttrGlobalMemoryBusWidth, 5120},
        {cudaDevAttrL2CacheSize, kL2Bytes},
        {cudaDevAttrMaxThreadsPerMultiProcessor, kThreadsPerProcessor},
        {cudaDevAttrUnifiedAddressing, 1},
        {cudaDevAttrComputeCapabilityMajor, settings.major},
        {cudaDevAttrComputeCapabilityMinor, settings.minor},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, kSharedPerProcessor},
        {cudaDevAttrCooperativeLaunch, 1},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, kSharedMax},
        {cudaDevAttrMaxBlocksPerMultiprocessor, kBlocksPerProcessor},
        {cudaDevAttrReservedSharedMemoryPerBlock, kSharedReserved},
        {cudaDevAttrMemoryPoolsSupported, 0},
    };
    const auto at = values.find(attribute);
    if (value == nullptr || at == values.end()) return cudaErrorInvalidValue;
    *value = at->second;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return Api("cudaGetDeviceProperties", [&] {
    if (const cudaError_t error = CheckDevice(device); error != cudaSuccess) return error;
    const DeviceSettings settings = GetDeviceSettings();
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "CUDA twin (a CPU)");
    properties->totalGlobalMem = TotalBytes();
    properties->sharedMemPerBlock = kSharedDefaultMax;
    properties->regsPerBlock = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = kThreadsMax;
    std::ranges::copy(std::initializer_list<int>{1024, 1024, 64}, properties->maxThreadsDim);
    std::ranges::copy(std::initializer_list<int>{0x7FFFFFFF, 65535, 65535}, properties->maxGridSize);
    properties->major = settings.major;
    properties->minor = settings.minor;
    properties->multiProcessorCount = kProcessors;
    properties->pciBusID = 1 + device;
    properties->memoryBusWidth = 5120;
    properties->l2CacheSize = kL2Bytes;
    properties->maxThreadsPerMultiProcessor = kThreadsPerProcessor;
    properties->sharedMemPerMultiprocessor = kSharedPerProcessor;
    properties->sharedMemPerBlockOptin = kSharedMax;
    properties->cooperativeLaunch = 1;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int length, int device) {
  return Api("cudaDeviceGetPCIBusId", [&] {
    if (const cudaError_t error = CheckDevice(device); error != cudaSuccess) return error;
    std::snprintf(bus_id, static_cast<size_t>(length), "0000:%02X:00.0", 1 + device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceReset() {
  return Api("cudaDeviceReset", [&] {
    DrainAllStreams();
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceCanAccessPeer(int* can_access, int device, int peer) {
  return Api("cudaDeviceCanAccessPeer", [&] {
    if (CheckDevice(device) != cudaSuccess || CheckDevice(peer) != cudaSuccess) return cudaErrorInvalidDevice;
    *can_access = device != peer && GetDeviceSettings().peer_access ? 1 : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int flags) {
  return Api("cudaDeviceEnablePeerAccess", [&] {
    if (CheckDevice(peer) != cudaSuccess || peer == current_device) return cudaErrorInvalidDevice;
    if (!GetDeviceSettings().peer_access) return cudaErrorPeerAccessUnsupported;
    return flags == 0 ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return Api("cudaDeviceGetStreamPriorityRange", [&] {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned int, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  return Api("cudaGetDriverEntryPointByVersion", [&] {
    *function = nullptr;
    if (result != nullptr) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaErrorSymbolNotFound;
  });
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return Api("cudaFuncSetAttribute", [&] {
    if (function == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
      return value >= -1 && value <= 100 ? cudaSuccess : cudaErrorInvalidValue;
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > kSharedMax) {
      return cudaErrorInvalidValue;
    }
    MutexLock lock(State().mu);
    State().dynamic_shared[function] = value;
    return cudaSuccess;
  });
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
  return Api("cudaFuncGetAttributes", [&] {
    if (function == nullptr || attributes == nullptr) return cudaErrorInvalidDeviceFunction;
    *attributes = {};
    attributes->maxThreadsPerBlock = kThreadsMax;
    attributes->numRegs = 64;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    MutexLock lock(State().mu);
    const auto at = State().dynamic_shared.find(function);
    attributes->maxDynamicSharedSizeBytes = at == State().dynamic_shared.end() ? kSharedDefaultMax : at->second;
    return cudaSuccess;
  });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int block_size,
                                                          size_t dynamic_shared_bytes) {
  return Api("cudaOccupancyMaxActiveBlocksPerMultiprocessor", [&] {
    if (blocks == nullptr || function == nullptr || block_size <= 0) return cudaErrorInvalidValue;
    const int warps = (block_size + 31) / 32;
    const int by_threads = kThreadsPerProcessor / (warps * 32);
    const int by_shared = kSharedPerProcessor / (static_cast<int>(dynamic_shared_bytes) + kSharedReserved);
    *blocks = std::min({by_threads, by_shared, kBlocksPerProcessor});
    return cudaSuccess;
  });
}
