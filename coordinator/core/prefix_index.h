#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace quicksilver {

/// Which groups lately got a prompt that begins with a prefix. A table of fixed size: of the entries that share a set
/// the one not seen for the longest time makes room. It may forget and, when hashes collide, err; both cost time only.
class PrefixIndex {
 public:
  static constexpr size_t kWays = 8;
  using Holder = uint32_t;  ///< A group's incarnation, from 1.
  using Holders = std::array<Holder, kWays>;

  /// Room for sets * kWays entries of 16 bytes. `sets` is a power of two.
  explicit PrefixIndex(size_t sets = size_t{1} << 15);

  /// `holder` gets a prompt with this chain.
  void Record(absl::Span<const uint64_t> chain, Holder holder);
  /// Writes who holds the prefix and returns how many.
  size_t Find(uint64_t hash, Holders& holders) const;

 private:
  struct Way {
    uint64_t hash = 0;
    Holder holder = 0;
    uint32_t seen = 0;
  };
  struct alignas(64) Set {
    std::array<Way, kWays> ways;
  };

  std::vector<Set> sets_;
  uint32_t now_ = 0;  // Counts calls of Record().
};

}  // namespace quicksilver
