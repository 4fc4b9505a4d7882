#include "kernels/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/patience.h"

namespace quicksilver {
namespace {

constexpr size_t kAlignment = 256;

size_t RoundUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

cudaError_t AwaitEvent(cudaEvent_t event) {
  Patience patience;
  while (true) {
    const cudaError_t state = cudaEventQuery(event);
    if (state != cudaErrorNotReady) return state;
    cudaGetLastError();  // "Not ready" is no error to remember.
    patience.Pause();
  }
}

absl::StatusOr<std::unique_ptr<Staging>> Staging::Create(cudaStream_t stream, size_t bytes) {
  const size_t part_bytes = RoundUp(bytes / 2 / kParts);
  CHECK(part_bytes > 0);
  std::unique_ptr<Staging> staging(new Staging(stream, part_bytes));
  ASSIGN_OR_RETURN(staging->uploads_, AllocatePinnedMemory(kParts * part_bytes, "uploads"));
  ASSIGN_OR_RETURN(staging->downloads_, AllocatePinnedMemory(kParts * part_bytes, "downloads"));
  for (CudaEvent& event : staging->left_) {
    ASSIGN_OR_RETURN(event, MakeCudaEvent(cudaEventDisableTiming));
  }
  ASSIGN_OR_RETURN(staging->downloads_done_, MakeCudaEvent(cudaEventDisableTiming));
  return staging;
}

cudaError_t Staging::NextPart() {
  const cudaError_t error = cudaEventRecord(left_[part_].get(), stream_);
  if (error != cudaSuccess) return error;
  part_ = (part_ + 1) % kParts;
  part_used_ = 0;
  return AwaitEvent(left_[part_].get());
}

cudaError_t Staging::Upload(const void* host, void* device, size_t bytes) {
  const unsigned char* from = static_cast<const unsigned char*>(host);
  unsigned char* to = static_cast<unsigned char*>(device);
  while (bytes > 0) {
    if (part_used_ == part_bytes_) {
      if (const cudaError_t error = NextPart(); error != cudaSuccess) return error;
    }
    unsigned char* const staged = static_cast<unsigned char*>(uploads_.get()) + part_ * part_bytes_ + part_used_;
    const size_t count = std::min(bytes, part_bytes_ - part_used_);
    std::memcpy(staged, from, count);
    const cudaError_t error = cudaMemcpyAsync(to, staged, count, cudaMemcpyDefault, stream_);
    if (error != cudaSuccess) return error;
    part_used_ += std::min(RoundUp(count), part_bytes_ - part_used_);
    from += count;
    to += count;
    bytes -= count;
  }
  return cudaSuccess;
}

cudaError_t Staging::Download(const void* device, void* host, size_t bytes) {
  const size_t room = kParts * part_bytes_;
  const unsigned char* from = static_cast<const unsigned char*>(device);
  unsigned char* to = static_cast<unsigned char*>(host);
  while (bytes > 0) {
    if (downloaded_ == room) {
      cudaError_t error = cudaEventRecord(downloads_done_.get(), stream_);
      if (error == cudaSuccess) error = AwaitEvent(downloads_done_.get());
      if (error != cudaSuccess) return error;
      Deliver();
    }
    unsigned char* const staged = static_cast<unsigned char*>(downloads_.get()) + downloaded_;
    const size_t count = std::min(bytes, room - downloaded_);
    const cudaError_t error = cudaMemcpyAsync(staged, from, count, cudaMemcpyDefault, stream_);
    if (error != cudaSuccess) return error;
    deliveries_.push_back({staged, to, count});
    downloaded_ += std::min(RoundUp(count), room - downloaded_);
    from += count;
    to += count;
    bytes -= count;
  }
  return cudaSuccess;
}

void Staging::Deliver() {
  for (const Delivery& delivery : deliveries_) std::memcpy(delivery.host, delivery.from, delivery.bytes);
  Forget();
}

}  // namespace quicksilver
