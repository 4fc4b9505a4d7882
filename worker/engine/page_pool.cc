#include "worker/engine/page_pool.h"

#include "common/check.h"

namespace quicksilver {

PagePool::PagePool(int32_t pages) : states_(static_cast<size_t>(pages)) {
  CHECK(pages > 0);
  for (int32_t page = pages - 1; page >= 0; --page) free_.push_back(page);
}

PagePool::State& PagePool::StateOf(int32_t page) {
  CHECK(page >= 0 && page < total());
  return states_[static_cast<size_t>(page)];
}

int32_t PagePool::Take() {
  CHECK(!free_.empty());
  const int32_t page = free_.back();
  free_.pop_back();
  State& state = StateOf(page);
  CHECK(state.owners == 0 && !state.kept);
  state.owners = 1;
  ++used_;
  ++owners_;
  return page;
}

void PagePool::Share(int32_t page) {
  State& state = StateOf(page);
  CHECK(state.kept);
  if (state.owners++ == 0) {
    --cached_;
    ++used_;
  }
  ++owners_;
}

void PagePool::Drop(int32_t page) {
  State& state = StateOf(page);
  CHECK(state.owners > 0);
  --owners_;
  if (--state.owners > 0) return;
  --used_;
  if (state.kept) {
    ++cached_;
  } else {
    free_.push_back(page);
  }
}

void PagePool::Keep(int32_t page) {
  State& state = StateOf(page);
  CHECK(state.owners == 1 && !state.kept);
  state.kept = true;
}

void PagePool::Unkeep(int32_t page) {
  State& state = StateOf(page);
  CHECK(state.kept && state.owners <= 1);
  state.kept = false;
  if (state.owners > 0) return;
  --cached_;
  free_.push_back(page);
}

void PagePool::Check() const {
  CHECK(free() + cached_ + used_ == total());
  CHECK(used_ >= 0 && cached_ >= 0 && owners_ >= used_);
}

}  // namespace quicksilver
