#pragma once

#include <cstddef>
#include <cstdint>

#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace quicksilver::cuda_twin {

enum class MemoryKind { kUnknown, kDevice, kPinned, kRegistered, kImported };

/// What the allocation that holds `pointer` is.
struct MemoryInfo {
  MemoryKind kind = MemoryKind::kUnknown;
  int device = 0;
  unsigned char* begin = nullptr;
  size_t bytes = 0;
};
MemoryInfo FindMemory(const void* pointer);

/// Whether a kernel may touch all of [pointer, pointer + bytes).
bool IsDeviceVisible(const void* pointer, size_t bytes);

/// Whether a copy of `kind` from `from` to `to` is in bounds and has its sides where `kind` says.
cudaError_t CheckCopy(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind);

/// Device memory only; for cudaMemset.
cudaError_t CheckDeviceRange(const void* pointer, size_t bytes);

void SetSharedBacking(bool shared);
void SetTotalBytes(size_t bytes);
size_t TotalBytes();
size_t AllocatedBytes();
size_t AllocationsCount();

}  // namespace quicksilver::cuda_twin
