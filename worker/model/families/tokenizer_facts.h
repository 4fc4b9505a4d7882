#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace quicksilver {

/// The little that a model needs to know of tokenizer.json.
struct TokenizerFacts {
  int64_t ids_end = 0;                          ///< Above every id of its vocabulary and added tokens; 0: none seen.
  std::map<std::string, TokenId> added_tokens;  ///< Content -> id.
};

/// Reads them as the text streams by, since the whole document would take a hundred megabytes.
/// InvalidArgument, beginning with `file`: not JSON, or an id that is not one.
absl::StatusOr<TokenizerFacts> ReadTokenizerFacts(const std::string& file, const std::string& text);

}  // namespace quicksilver
