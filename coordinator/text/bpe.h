#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace quicksilver {

/// Byte-pair merges over byte-level tokens. Immutable once built, thread-safe.
class Bpe {
 public:
  struct Merge {
    int32_t left = 0;
    int32_t right = 0;
    int32_t joined = 0;
  };
  struct Tables {
    std::array<int32_t, 256> byte_ids{};  ///< -1: the vocabulary lacks this byte (none that UTF-8 can hold).
    std::vector<Merge> merges;            ///< Best first; of two equal pairs the later counts.
    /// Words that are one token without asking the merges (ignore_merges).
    absl::flat_hash_map<std::string, int32_t> whole_words;
    size_t token_bytes_max = 1;  ///< Of any token that a merge or a whole word gives.
  };
  /// One thread's working memory.
  struct Scratch;

  explicit Bpe(Tables tables);

  /// Appends the ids of one word: at each turn the pair of the best rank merges, of equals the leftmost.
  /// O(n log n). ResourceExhausted: `ids` would grow past `ids_max`; found before the work where the length tells.
  absl::Status Encode(std::string_view word, size_t ids_max, Scratch& scratch, std::vector<int32_t>& ids) const;

  size_t token_bytes_max() const { return token_bytes_max_; }

 private:
  struct Ranked {
    uint32_t rank = 0;
    int32_t joined = 0;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  void MergeAll(Scratch& scratch) const;
  void Propose(int32_t left, Scratch& scratch) const;
  const Ranked* FindMerge(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, Ranked> merges_;
  absl::flat_hash_map<std::string, int32_t> whole_words_;
  size_t token_bytes_max_;
};

struct Bpe::Scratch {
  struct Symbol {
    int32_t id = 0;  // -1: merged into its left neighbour.
    int32_t previous = -1;
    int32_t next = -1;
  };
  struct Proposal {
    uint32_t rank = 0;
    int32_t position = 0;
    int32_t joined = 0;
    bool operator>(const Proposal& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::vector<Symbol> symbols;
  std::vector<Proposal> heap;  // Smallest first.
};

/// The error of every "too many ids".
absl::Status TooManyIds(size_t ids_max);

}  // namespace quicksilver
