#include "worker/engine/fair_shares.h"

#include <algorithm>
#include <limits>

#include "common/check.h"

namespace quicksilver {

int32_t FairShares::Join(const std::string& tenant) {
  ForgetTheGone();
  const auto [place, inserted] = by_tenant_.try_emplace(tenant, -1);
  if (inserted) {
    if (unused_.empty()) {
      unused_.push_back(static_cast<int32_t>(shares_.size()));
      shares_.emplace_back();
    }
    place->second = unused_.back();
    unused_.pop_back();
    At(place->second) = Share{.known = true, .tenant = tenant};
  }
  Share& share = At(place->second);
  if (share.sequences++ == 0) {
    ++tenants_;
    if (!inserted) --gone_;
    share.time = std::max(share.time, now_);
  }
  return place->second;
}

void FairShares::Leave(int32_t index) {
  Share& share = At(index);
  CHECK(share.sequences > 0);
  if (--share.sequences > 0) return;
  share.missed = false;
  if (++gone_ > kGoneMax) ForgetTheLeastGone();
  if (--tenants_ > 0) return;
  for (const Share& other : shares_) now_ = std::max(now_, other.time);
}

void FairShares::Forget(Share& share) {
  by_tenant_.erase(share.tenant);
  share = Share();
  unused_.push_back(static_cast<int32_t>(&share - shares_.data()));
  --gone_;
}

// Who leaves with more than the others have had, and comes back at once, has still had it.
void FairShares::ForgetTheGone() {
  for (Share& share : shares_) {
    if (share.known && share.sequences == 0 && share.time <= now_) Forget(share);
  }
}

void FairShares::ForgetTheLeastGone() {
  Share* least = nullptr;
  for (Share& share : shares_) {
    if (!share.known || share.sequences > 0) continue;
    if (least == nullptr || share.time < least->time) least = &share;
  }
  Forget(*least);
}

// A step in which everybody got what he wanted is nobody's debt.
void FairShares::Settle() {
  uint64_t least = std::numeric_limits<uint64_t>::max();
  bool missed = false;
  for (const Share& share : shares_) missed |= share.missed;
  for (Share& share : shares_) {
    if (missed) share.time += share.rows;
    if (share.missed) least = std::min(least, share.time);
    share.rows = 0;
  }
  if (!missed) return;
  now_ = least;
  for (Share& share : shares_) {
    if (share.sequences > 0 && !share.missed) share.time = std::max(share.time, now_);
    share.missed = false;
  }
}

}  // namespace quicksilver
