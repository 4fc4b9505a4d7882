#include "worker/engine/page_pool.h"

#include "common/check.h"

namespace quicksilver {

PagePool::PagePool(int32_t pages) : used_(static_cast<size_t>(pages), false) {
  CHECK(pages > 0);
  for (int32_t page = pages - 1; page >= 0; --page) free_.push_back(page);
}

std::optional<std::vector<int32_t>> PagePool::Take(int32_t count) {
  CHECK(count > 0);
  if (count > free()) return std::nullopt;
  std::vector<int32_t> pages;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t page = free_.back();
    free_.pop_back();
    CHECK(!used_[static_cast<size_t>(page)]);
    used_[static_cast<size_t>(page)] = true;
    pages.push_back(page);
  }
  return pages;
}

void PagePool::Give(const std::vector<int32_t>& pages) {
  for (const int32_t page : pages) {
    CHECK(page >= 0 && page < total() && used_[static_cast<size_t>(page)]);
    used_[static_cast<size_t>(page)] = false;
    free_.push_back(page);
  }
  CHECK(free() <= total());
}

}  // namespace quicksilver
