#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace quicksilver {

/// How many rows each tenant was granted while others wanted some, as virtual time (start-time fair queueing with equal
/// weights): who has the least goes first. One that wants less than its share gathers no claim, and one that comes
/// later starts level with the others. Pure and deterministic.
///
/// Only for tenants that compete: one that must wait for all others, whatever it had, would hold the virtual time back,
/// and whoever comes would have a claim to all that was ever granted.
class FairShares {
 public:
  /// So many that left with more than the others had are remembered, those that had most.
  static constexpr int32_t kGoneMax = 256;

  /// One more sequence of `tenant`. The returned share stays the tenant's as long as it has sequences.
  int32_t Join(const std::string& tenant);
  /// One sequence less.
  void Leave(int32_t share);
  /// Tenants that have sequences.
  int32_t tenants() const { return tenants_; }
  /// Shares that Join() may have returned are below it.
  int32_t shares_max() const { return static_cast<int32_t>(shares_.size()); }
  /// Rows that it is ahead of the one that has the least.
  uint64_t lead(int32_t share) const { return At(share).time - now_; }

  /// In this step it was granted `rows` rows.
  void Charge(int32_t share, int32_t rows) { At(share).rows += static_cast<uint64_t>(rows); }
  /// In this step it wanted more than it was granted.
  void Miss(int32_t share) { At(share).missed = true; }
  /// Ends the step.
  void Settle();

 private:
  struct Share {
    bool known = false;
    std::string tenant;
    int32_t sequences = 0;
    bool missed = false;
    uint64_t rows = 0;
    uint64_t time = 0;
  };

  Share& At(int32_t share) { return shares_[static_cast<size_t>(share)]; }
  const Share& At(int32_t share) const { return shares_[static_cast<size_t>(share)]; }
  void Forget(Share& share);
  void ForgetTheGone();
  void ForgetTheLeastGone();

  std::vector<Share> shares_;
  std::vector<int32_t> unused_;
  absl::flat_hash_map<std::string, int32_t> by_tenant_;  // Also those that left with more than the others had.
  int32_t tenants_ = 0;
  int32_t gone_ = 0;  // Known ones without sequences.
  uint64_t now_ = 0;  // Where one begins that has no past. No tenant's time is less.
};

}  // namespace quicksilver
