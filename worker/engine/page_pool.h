#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace quicksilver {

/// Which pages of the KV cache are free. Pure and deterministic: ranks that take and give alike hold the same pages.
/// Invariant (checked): every page is either free or used, and is given back exactly once.
class PagePool {
 public:
  explicit PagePool(int32_t pages);

  int32_t total() const { return static_cast<int32_t>(used_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }

  /// `count` pages, or nothing when fewer are free.
  std::optional<std::vector<int32_t>> Take(int32_t count);
  void Give(const std::vector<int32_t>& pages);

 private:
  std::vector<int32_t> free_;  // The last one is taken first.
  std::vector<bool> used_;
};

}  // namespace quicksilver
