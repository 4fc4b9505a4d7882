#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace quicksilver {

/// Scratch memory that only grows, 64-byte aligned, so that a steady state allocates nothing. Growing loses the
/// content.
template <typename T>
class Workspace {
 public:
  T* Get(size_t count) {
    if (count > count_) {
      data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlignment)));
      count_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };

  std::unique_ptr<T, Free> data_;
  size_t count_ = 0;
};

}  // namespace quicksilver
