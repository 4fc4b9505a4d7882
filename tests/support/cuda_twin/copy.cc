#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/memory.h"
#include "tests/support/cuda_twin/stream.h"

namespace quicksilver::cuda_twin {
namespace {

struct Rows {
  void* to;
  size_t to_pitch;
  const void* from;
  size_t from_pitch;
  size_t width;
  size_t height;
};

void CopyRows(const Rows& rows) {
  for (size_t i = 0; i < rows.height; ++i) {
    std::memmove(static_cast<char*>(rows.to) + i * rows.to_pitch,
                 static_cast<const char*>(rows.from) + i * rows.from_pitch, rows.width);
  }
}

size_t Extent(size_t pitch, size_t width, size_t height) { return height == 0 ? 0 : (height - 1) * pitch + width; }

// Pageable host memory is not read after the call, nor written after it: CUDA goes through a buffer of its own.
cudaError_t Copy(Rows rows, cudaMemcpyKind kind, cudaStream_t stream) {
  if (rows.width == 0 || rows.height == 0) return cudaSuccess;
  if (rows.height > 1 && (rows.width > rows.to_pitch || rows.width > rows.from_pitch)) return cudaErrorInvalidValue;
  const size_t to_bytes = Extent(rows.to_pitch, rows.width, rows.height);
  const size_t from_bytes = Extent(rows.from_pitch, rows.width, rows.height);
  cudaError_t error = CheckCopy(rows.to, rows.from, std::max(to_bytes, from_bytes), kind);
  if (error != cudaSuccess) return error;
  if (IsCapturing(stream)) return Submit(stream, cudaGraphNodeTypeMemcpy, [rows] { CopyRows(rows); });
  if (FindMemory(rows.from).kind == MemoryKind::kUnknown) {
    const auto* begin = static_cast<const unsigned char*>(rows.from);
    auto staged = std::make_shared<std::vector<unsigned char>>(begin, begin + from_bytes);
    rows.from = staged->data();
    return Submit(stream, cudaGraphNodeTypeMemcpy, [rows, staged] { CopyRows(rows); });
  }
  const bool wait = FindMemory(rows.to).kind == MemoryKind::kUnknown;
  error = Submit(stream, cudaGraphNodeTypeMemcpy, [rows] { CopyRows(rows); });
  return error == cudaSuccess && wait ? Drain(stream) : error;
}

cudaError_t CopyNow(const Rows& rows, cudaMemcpyKind kind) {
  if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
  const cudaError_t error = Copy(rows, kind, nullptr);
  return error == cudaSuccess ? Drain(nullptr) : error;
}

cudaError_t Set(void* memory, int value, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = CheckDeviceRange(memory, bytes); error != cudaSuccess || bytes == 0) return error;
  return Submit(stream, cudaGraphNodeTypeMemset, [=] { std::memset(memory, value, bytes); });
}

}  // namespace
}  // namespace quicksilver::cuda_twin

using namespace quicksilver::cuda_twin;

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return Api("cudaMemcpyAsync", [&] { return Copy({to, bytes, from, bytes, bytes, 1}, kind, stream); });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return Api("cudaMemcpy", [&] { return CopyNow({to, bytes, from, bytes, bytes, 1}, kind); });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  return Api("cudaMemcpy2DAsync", [&] { return Copy({to, to_pitch, from, from_pitch, width, height}, kind, stream); });
}

cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind kind) {
  return Api("cudaMemcpy2D", [&] { return CopyNow({to, to_pitch, from, from_pitch, width, height}, kind); });
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return Api("cudaMemsetAsync", [&] { return Set(memory, value, bytes, stream); });
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
  return Api("cudaMemset", [&] {
    if (const cudaError_t error = CheckNoCapture(); error != cudaSuccess) return error;
    const cudaError_t error = Set(memory, value, bytes, nullptr);
    return error == cudaSuccess ? Drain(nullptr) : error;
  });
}
