#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels/tensor.h"

namespace quicksilver {

/// The memory that a rank's communicator works on.
class RankMemory {
 public:
  virtual ~RankMemory() = default;
  /// Zeroed; lives as long as this.
  virtual void* Allocate(size_t bytes) = 0;
  /// Ordered with the communicator's operations; what Read gives is what they left.
  virtual void Write(const void* host, void* to, size_t bytes) = 0;
  virtual void Read(const void* from, void* host, size_t bytes) = 0;
};

class HostRankMemory final : public RankMemory {
 public:
  void* Allocate(size_t bytes) override {
    blocks_.push_back(std::make_unique<std::byte[]>(bytes));
    return blocks_.back().get();
  }
  void Write(const void* host, void* to, size_t bytes) override { std::memcpy(to, host, bytes); }
  void Read(const void* from, void* host, size_t bytes) override { std::memcpy(host, from, bytes); }

 private:
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
};

/// An array in a rank's memory.
template <typename T>
class RankArray {
 public:
  RankArray(RankMemory& memory, const std::vector<T>& values)
      : memory_(memory), size_(values.size()), data_(static_cast<T*>(memory.Allocate(values.size() * sizeof(T)))) {
    Set(values);
  }
  T* data() const { return data_; }
  Matrix row(DType dtype) const {
    const auto cols = static_cast<int64_t>(size_);
    return {data_, 1, cols, cols, dtype};
  }
  void Set(const std::vector<T>& values) const { memory_.Write(values.data(), data_, size_ * sizeof(T)); }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    memory_.Read(data_, values.data(), size_ * sizeof(T));
    return values;
  }

 private:
  RankMemory& memory_;
  size_t size_;
  T* data_;
};

}  // namespace quicksilver
