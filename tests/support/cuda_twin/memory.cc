#include "tests/support/cuda_twin/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "common/mutex.h"
#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/settings.h"
#include "tests/support/cuda_twin/stream.h"

namespace quicksilver::cuda_twin {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlignment = 256;
constexpr int kPoison = 0xFF;  // NaN in every float type, -1 in every integer.
constexpr size_t kPoisonFileBytes = size_t{32} << 20;
constexpr size_t kTotalBytesDefault = size_t{8} << 30;

struct Allocation {
  size_t bytes = 0;
  MemoryKind kind = MemoryKind::kDevice;
  int device = 0;
  // What to unmap; null for malloc'd and registered memory.
  void* mapping = nullptr;
  size_t mapping_bytes = 0;
  int fd = -1;
  int opened = 0;  // Imported: how often.
};

struct Memory {
  Mutex mu;
  std::map<uintptr_t, Allocation> allocations;  // By first byte.
  size_t total = kTotalBytesDefault;
  std::map<int, size_t> used;
  bool shared = false;
};

Memory& State() {
  static auto* memory = new Memory;
  return *memory;
}

uintptr_t Address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// The allocation that holds the address, or end(). Needs the lock.
std::map<uintptr_t, Allocation>::iterator Find(Memory& memory, uintptr_t address) {
  auto at = memory.allocations.upper_bound(address);
  if (at == memory.allocations.begin()) return memory.allocations.end();
  --at;
  const bool inside = address < at->first + at->second.bytes || (address == at->first && at->second.bytes == 0);
  return inside ? at : memory.allocations.end();
}

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

bool UseShared(const Memory& memory) { return memory.shared || Environment().shared; }

// A file of poison. Private mappings of it are poisoned without a write, so what is not used costs nothing.
int PoisonFile() {
  static const int file = [] {
    const int fd = memfd_create("cuda_twin_poison", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(kPoisonFileBytes)) != 0) std::abort();
    void* bytes = mmap(nullptr, kPoisonFileBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) std::abort();
    std::memset(bytes, kPoison, kPoisonFileBytes);
    munmap(bytes, kPoisonFileBytes);
    return fd;
  }();
  return file;
}

bool MapPoison(unsigned char* begin, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kPoisonFileBytes) {
    const size_t part = std::min(bytes - at, kPoisonFileBytes);
    constexpr int kFlags = MAP_FIXED | MAP_NORESERVE | MAP_PRIVATE;
    if (mmap(begin + at, part, PROT_READ | PROT_WRITE, kFlags, PoisonFile(), 0) == MAP_FAILED) return false;
  }
  return true;
}

bool MapShared(unsigned char* begin, size_t bytes, Allocation* allocation) {
  allocation->fd = memfd_create("cuda_twin", MFD_CLOEXEC);
  if (allocation->fd < 0 || ftruncate(allocation->fd, static_cast<off_t>(bytes)) != 0) return false;
  if (mmap(begin, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_SHARED, allocation->fd, 0) == MAP_FAILED) return false;
  std::memset(begin, kPoison, bytes);
  return true;
}

// Maps `bytes` of poison so that they end, up to the alignment, at an unmapped page. Null when the system has none.
unsigned char* Map(size_t bytes, bool shared, Allocation* allocation) {
  const size_t rounded = RoundUp(bytes, kAlignment);
  const size_t pages = RoundUp(rounded, kPage);
  allocation->mapping_bytes = pages + kPage;
  allocation->mapping = mmap(nullptr, pages + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (allocation->mapping == MAP_FAILED) return nullptr;
  auto* begin = static_cast<unsigned char*>(allocation->mapping);
  if (!(shared ? MapShared(begin, pages, allocation) : MapPoison(begin, pages))) return nullptr;
  return begin + (pages - rounded);
}

#if defined(__SANITIZE_ADDRESS__)
unsigned char* AllocateInRedZones(size_t bytes) {
  void* begin = nullptr;
  if (posix_memalign(&begin, kAlignment, bytes) != 0) return nullptr;
  std::memset(begin, kPoison, bytes);
  return static_cast<unsigned char*>(begin);
}
#endif

void Release(const Allocation& allocation, uintptr_t begin) {
  if (allocation.kind == MemoryKind::kRegistered) return;
  if (allocation.mapping != nullptr) {
    munmap(allocation.mapping, allocation.mapping_bytes);
    if (allocation.fd >= 0) close(allocation.fd);
  } else {
    std::free(reinterpret_cast<void*>(begin));
  }
}

cudaError_t Allocate(void** memory, size_t bytes, MemoryKind kind) {
  if (memory == nullptr) return cudaErrorInvalidValue;
  *memory = nullptr;
  if (bytes == 0) return cudaSuccess;
  Memory& state = State();
  MutexLock lock(state.mu);
  Allocation allocation{.bytes = bytes, .kind = kind, .device = CurrentDevice()};
  size_t& used = state.used[allocation.device];
  if (kind == MemoryKind::kDevice && RoundUp(bytes, kAlignment) > state.total - std::min(used, state.total)) {
    return cudaErrorMemoryAllocation;
  }
#if defined(__SANITIZE_ADDRESS__)
  const bool shared = UseShared(state);
  unsigned char* begin = shared ? Map(bytes, true, &allocation) : AllocateInRedZones(bytes);
#else
  unsigned char* begin = Map(bytes, UseShared(state), &allocation);
#endif
  if (begin == nullptr) return cudaErrorMemoryAllocation;
  if (kind == MemoryKind::kDevice) used += RoundUp(bytes, kAlignment);
  state.allocations[Address(begin)] = allocation;
  *memory = begin;
  return cudaSuccess;
}

void CheckSlack(const Allocation& allocation, uintptr_t begin) {
  if (allocation.mapping == nullptr) return;
  const auto* end = reinterpret_cast<const unsigned char*>(begin + allocation.bytes);
  const auto* slack_end = reinterpret_cast<const unsigned char*>(begin + RoundUp(allocation.bytes, kAlignment));
  if (std::all_of(end, slack_end, [](unsigned char byte) { return byte == kPoison; })) return;
  std::fprintf(stderr, "CUDA twin: something wrote behind the end of an allocation of %zu bytes\n", allocation.bytes);
  std::abort();
}

cudaError_t Free(void* pointer, MemoryKind kind) {
  if (pointer == nullptr) return cudaSuccess;
  DrainAllStreams();
  Memory& state = State();
  MutexLock lock(state.mu);
  auto at = state.allocations.find(Address(pointer));
  if (at == state.allocations.end() || at->second.kind != kind) return cudaErrorInvalidValue;
  if (kind == MemoryKind::kDevice) state.used[at->second.device] -= RoundUp(at->second.bytes, kAlignment);
  CheckSlack(at->second, at->first);
  Release(at->second, at->first);
  state.allocations.erase(at);
  return cudaSuccess;
}

/// What a cudaIpcMemHandle_t carries: which memory of which process, and where in it the pointer stands.
struct IpcHandle {
  int pid;
  int fd;
  uint64_t address;
  uint64_t bytes;
  uint64_t mapping_offset;
};
static_assert(sizeof(IpcHandle) <= CUDA_IPC_HANDLE_SIZE);

}  // namespace

MemoryInfo FindMemory(const void* pointer) {
  Memory& state = State();
  MutexLock lock(state.mu);
  const auto at = Find(state, Address(pointer));
  if (at == state.allocations.end()) return {};
  return {at->second.kind, at->second.device, reinterpret_cast<unsigned char*>(at->first), at->second.bytes};
}

bool IsDeviceVisible(const void* pointer, size_t bytes) {
  // Copies come in runs from one allocation. A freed one is noticed by the page that is gone.
  thread_local MemoryInfo last;
  const auto inside = [&] {
    const uintptr_t begin = Address(last.begin);
    return Address(pointer) >= begin && Address(pointer) + bytes <= begin + last.bytes;
  };
  if (last.kind != MemoryKind::kUnknown && inside()) return true;
  last = FindMemory(pointer);
  return last.kind != MemoryKind::kUnknown && inside();
}

cudaError_t CheckDeviceRange(const void* pointer, size_t bytes) {
  if (bytes == 0) return cudaSuccess;
  const MemoryInfo info = FindMemory(pointer);
  if (info.kind == MemoryKind::kUnknown) return cudaErrorInvalidValue;
  return Address(pointer) + bytes <= Address(info.begin) + info.bytes ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t CheckCopy(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes == 0) return cudaSuccess;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) return cudaErrorInvalidMemcpyDirection;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  const auto side = [&](const void* pointer, bool device) {
    const MemoryInfo info = FindMemory(pointer);
    const bool known = info.kind != MemoryKind::kUnknown;
    if (known && Address(pointer) + bytes > Address(info.begin) + info.bytes) return false;
    if (kind == cudaMemcpyDefault) return true;
    if (device) return known;
    return info.kind != MemoryKind::kDevice && info.kind != MemoryKind::kImported;
  };
  return side(to, to_device) && side(from, from_device) ? cudaSuccess : cudaErrorInvalidValue;
}

void SetSharedBacking(bool shared) {
  MutexLock lock(State().mu);
  State().shared = shared;
}

void SetTotalBytes(size_t bytes) {
  MutexLock lock(State().mu);
  State().total = bytes == 0 ? kTotalBytesDefault : bytes;
}

size_t TotalBytes() {
  MutexLock lock(State().mu);
  return State().total;
}

size_t AllocatedBytes() {
  MutexLock lock(State().mu);
  size_t bytes = 0;
  for (const auto& [device, used] : State().used) bytes += used;
  return bytes;
}

size_t AllocationsCount() {
  MutexLock lock(State().mu);
  return State().allocations.size();
}

}  // namespace quicksilver::cuda_twin

using namespace quicksilver::cuda_twin;
using quicksilver::MutexLock;

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return Api("cudaMalloc", [&] {
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    if (ThisThreadCaptures()) {
      if (const cudaError_t error = EnterCall("cudaMalloc while capturing"); error != cudaSuccess) return error;
    }
    return Allocate(memory, bytes, MemoryKind::kDevice);
  });
}

cudaError_t cudaFree(void* memory) {
  return Api("cudaFree", [&] {
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    return Free(memory, MemoryKind::kDevice);
  });
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned int) {
  return Api("cudaHostAlloc", [&] {
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    return Allocate(memory, bytes, MemoryKind::kPinned);
  });
}

cudaError_t cudaMallocHost(void** memory, size_t bytes, unsigned int) {
  return Api("cudaMallocHost", [&] {
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    return Allocate(memory, bytes, MemoryKind::kPinned);
  });
}

cudaError_t cudaFreeHost(void* memory) {
  return Api("cudaFreeHost", [&] {
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    return Free(memory, MemoryKind::kPinned);
  });
}

cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned int) {
  return Api("cudaHostRegister", [&] {
    if (memory == nullptr || bytes == 0) return cudaErrorInvalidValue;
    Memory& state = State();
    MutexLock lock(state.mu);
    const auto next = state.allocations.lower_bound(Address(memory));
    if (Find(state, Address(memory)) != state.allocations.end() ||
        (next != state.allocations.end() && next->first < Address(memory) + bytes)) {
      return cudaErrorHostMemoryAlreadyRegistered;
    }
    state.allocations[Address(memory)] = {.bytes = bytes, .kind = MemoryKind::kRegistered, .device = CurrentDevice()};
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* memory) {
  return Api("cudaHostUnregister", [&] {
    DrainAllStreams();
    Memory& state = State();
    MutexLock lock(state.mu);
    const auto at = state.allocations.find(Address(memory));
    if (at == state.allocations.end() || at->second.kind != MemoryKind::kRegistered) {
      return cudaErrorHostMemoryNotRegistered;
    }
    state.allocations.erase(at);
    return cudaSuccess;
  });
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int) {
  return Api("cudaHostGetDevicePointer", [&] {
    const MemoryKind kind = FindMemory(host).kind;
    if (device == nullptr || (kind != MemoryKind::kPinned && kind != MemoryKind::kRegistered)) {
      return cudaErrorInvalidValue;
    }
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return Api("cudaPointerGetAttributes", [&] {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    const MemoryInfo info = FindMemory(pointer);
    void* value = const_cast<void*>(pointer);
    switch (info.kind) {
      case MemoryKind::kUnknown:
        *attributes = {cudaMemoryTypeUnregistered, -1, nullptr, value};
        break;
      case MemoryKind::kPinned:
      case MemoryKind::kRegistered:
        *attributes = {cudaMemoryTypeHost, info.device, value, value};
        break;
      default:
        *attributes = {cudaMemoryTypeDevice, info.device, value, nullptr};
        break;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return Api("cudaMemGetInfo", [&] {
    Memory& state = State();
    MutexLock lock(state.mu);
    const size_t used = state.used[CurrentDevice()];
    if (total_bytes != nullptr) *total_bytes = state.total;
    if (free_bytes != nullptr) *free_bytes = state.total - std::min(used, state.total);
    return cudaSuccess;
  });
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* device) {
  return Api("cudaIpcGetMemHandle", [&] {
    Memory& state = State();
    MutexLock lock(state.mu);
    const auto at = Find(state, Address(device));
    if (handle == nullptr || at == state.allocations.end() || at->second.kind != MemoryKind::kDevice) {
      return cudaErrorInvalidValue;
    }
    // As on a device, the handle names the whole allocation, whose first byte the importer gets.
    const IpcHandle ipc{getpid(), at->second.fd, at->first, at->second.bytes,
                        at->first - Address(at->second.mapping != nullptr ? at->second.mapping : device)};
    *handle = {};
    std::memcpy(handle->reserved, &ipc, sizeof ipc);
    return cudaSuccess;
  });
}

namespace {

// Maps the memory of another process. Needs the lock.
cudaError_t Import(Memory& state, const IpcHandle& ipc, void** device) {
  const std::string path = "/proc/" + std::to_string(ipc.pid) + "/fd/" + std::to_string(ipc.fd);
  const int fd = ipc.fd < 0 ? -1 : open(path.c_str(), O_RDWR | O_CLOEXEC);
  struct stat info {};
  if (fd < 0 || fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) < ipc.mapping_offset + ipc.bytes) {
    if (fd >= 0) close(fd);
    return cudaErrorMapBufferObjectFailed;
  }
  Allocation allocation{
      .bytes = ipc.bytes, .kind = MemoryKind::kImported, .device = CurrentDevice(), .fd = fd, .opened = 1};
  allocation.mapping_bytes = static_cast<size_t>(info.st_size);
  allocation.mapping = mmap(nullptr, allocation.mapping_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (allocation.mapping == MAP_FAILED) {
    close(fd);
    return cudaErrorMapBufferObjectFailed;
  }
  const uintptr_t begin = Address(allocation.mapping) + ipc.mapping_offset;
  state.allocations[begin] = allocation;
  *device = reinterpret_cast<void*>(begin);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaIpcOpenMemHandle(void** device, cudaIpcMemHandle_t handle, unsigned int) {
  return Api("cudaIpcOpenMemHandle", [&] {
    IpcHandle ipc;
    std::memcpy(&ipc, handle.reserved, sizeof ipc);
    if (device == nullptr || ipc.bytes == 0) return cudaErrorInvalidValue;
    Memory& state = State();
    MutexLock lock(state.mu);
    if (ipc.pid != getpid()) return Import(state, ipc, device);
    // Real CUDA refuses its own process's handle; ranks that are threads stand for processes here.
    const auto at = state.allocations.find(ipc.address);
    if (at == state.allocations.end()) return cudaErrorMapBufferObjectFailed;
    ++at->second.opened;
    *device = reinterpret_cast<void*>(ipc.address);
    return cudaSuccess;
  });
}

cudaError_t cudaIpcCloseMemHandle(void* device) {
  return Api("cudaIpcCloseMemHandle", [&] {
    DrainAllStreams();
    Memory& state = State();
    MutexLock lock(state.mu);
    const auto at = state.allocations.find(Address(device));
    if (at == state.allocations.end() || at->second.opened == 0) return cudaErrorInvalidValue;
    if (--at->second.opened == 0 && at->second.kind == MemoryKind::kImported) {
      Release(at->second, at->first);
      state.allocations.erase(at);
    }
    return cudaSuccess;
  });
}
