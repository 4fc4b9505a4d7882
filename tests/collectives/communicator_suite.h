#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/collectives/group_of_threads.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/rendezvous.h"

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

/// One rank of a group, as an implementation makes it.
struct RankMember {
  std::unique_ptr<RankMemory> memory;
  std::unique_ptr<Communicator> group;
};

/// What the conformance suite runs on: one thread a rank.
struct CommunicatorKind {
  std::string name;
  int ranks;
  std::function<absl::StatusOr<RankMember>(int rank, int ranks, RendezvousStore&)> make;
};

/// The suite of every Communicator (communicator_suite.cc). A test program compiles it and instantiates it with its
/// kinds.
class CommunicatorTest : public ::testing::TestWithParam<CommunicatorKind> {
 protected:
  int ranks() const { return GetParam().ranks; }
  void WithGroup(const std::function<void(int rank, Communicator& group, RankMemory& memory)>& body);
};

/// Magnitudes so far apart that another order of additions gives other bits.
std::vector<float> PartOf(int rank, size_t elements, uint32_t seed);
/// The sum of the parts of all ranks, in rank order.
std::vector<float> SumOfParts(int ranks, size_t elements, uint32_t seed);
std::vector<uint16_t> AsBf16(const std::vector<float>& values);

}  // namespace quicksilver
