#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/marked_text.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/pre_tokenizer.h"

namespace quicksilver {

/// The byte-level BPE tokenizer of a tokenizer.json, ids equal to the Hugging Face library's with
/// encode_special_tokens. The post-processor has no part in it: no token is ever added to a text. Immutable,
/// thread-safe.
class Tokenizer {
 public:
  struct Parts {
    Normalizer normalizer;
    PreTokenizer pre_tokenizer;
    Bpe::Tables bpe;  ///< No merge and no whole word gives the id of a special token.
    std::vector<AddedToken> added;
    std::vector<std::string> token_bytes;  ///< By id; "" for special tokens and for holes.
  };
  explicit Tokenizer(Parts parts);

  /// Special tokens are read from the literal bytes of `text` alone; everything between them is ordinary text, encoded
  /// whole, whichever marks it bears. InvalidArgument: `text` is not UTF-8. ResourceExhausted: more than `ids_max` ids.
  absl::StatusOr<std::vector<int32_t>> Encode(const MarkedText& text, size_t ids_max) const;
  /// The same for text that is content throughout.
  absl::StatusOr<std::vector<int32_t>> EncodeContent(std::string_view text, size_t ids_max) const;

  /// ResourceExhausted where that many bytes cannot be as few as `ids_max` ids; costs nothing.
  absl::Status CheckSize(size_t text_bytes, size_t ids_max) const;

  std::string_view TokenBytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;
  int32_t FindSpecial(std::string_view token) const;
  int32_t size() const { return static_cast<int32_t>(token_bytes_.size()); }

 private:
  struct Run;  // One call of Encode.

  absl::Status EncodeOrdinary(std::string_view text, Run& run) const;
  absl::Status EncodeNormalized(std::string_view text, Run& run) const;
  absl::Status EncodeWords(std::string_view text, Run& run) const;

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  AddedTokenFinder raw_finder_;         // Tokens sought before normalization, special ones among them.
  AddedTokenFinder normalized_finder_;  // Tokens sought after it.
  std::vector<std::string> token_bytes_;
  std::vector<bool> is_special_;
  absl::flat_hash_map<std::string, int32_t> special_ids_;
  size_t bytes_per_id_max_ = 0;  // Of the text as given; 0: no bound is known.
};

}  // namespace quicksilver
