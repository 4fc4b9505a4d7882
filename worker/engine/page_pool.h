#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quicksilver {

/// Whose the pages of the KV cache are. Pure and deterministic: ranks that make equal calls hold the same pages.
///
/// A page is free, used (it has owners) or cached (kept, without an owner): free + cached + used = total. A page that
/// is not kept has at most one owner, who may write it; a kept one is only read.
class PagePool {
 public:
  explicit PagePool(int32_t pages);

  int32_t total() const { return static_cast<int32_t>(states_.size()); }
  int32_t free() const { return static_cast<int32_t>(free_.size()); }
  int32_t cached() const { return cached_; }
  int32_t used() const { return used_; }
  int64_t owners() const { return owners_; }  ///< Of all pages together.
  int32_t owners(int32_t page) const { return StateOf(page).owners; }
  bool kept(int32_t page) const { return StateOf(page).kept; }

  /// A free page, which gets its first owner. Requires: free() > 0.
  int32_t Take();
  /// One more owner of a kept page.
  void Share(int32_t page);
  /// One owner less: without any the page is free, or cached when it is kept.
  void Drop(int32_t page);
  /// Keeps a page that has one owner, who writes it no more.
  void Keep(int32_t page);
  /// Ends that. Requires: at most one owner.
  void Unkeep(int32_t page);

  /// Aborts when the counts do not add up.
  void Check() const;

 private:
  struct State {
    int32_t owners = 0;
    bool kept = false;
  };

  const State& StateOf(int32_t page) const { return states_[static_cast<size_t>(page)]; }
  State& StateOf(int32_t page);

  std::vector<State> states_;
  std::vector<int32_t> free_;  // The last one is taken first.
  int32_t used_ = 0;
  int32_t cached_ = 0;
  int64_t owners_ = 0;
};

}  // namespace quicksilver
