#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/tokenizer.h"
#include "nlohmann/json_fwd.hpp"

namespace quicksilver {

constexpr int64_t kTokenIdsMax = 1 << 20;

/// What the files beside tokenizer.json say of its tokens.
struct TokenHints {
  struct Named {
    std::string role;  ///< For messages, as "mask_token".
    std::string content;
    bool required = true;  ///< It is an error when the vocabulary lacks it; else it is passed over.
  };
  std::vector<AddedToken> added;     ///< Complete; may repeat those of tokenizer.json.
  std::vector<Named> special_names;  ///< Become special.
  std::vector<int32_t> special_ids;  ///< Become special where the vocabulary has them.
};

/// Reads a parsed tokenizer.json. InvalidArgument: one line that names the first thing unsupported or inconsistent.
absl::StatusOr<Tokenizer> ParseTokenizer(const nlohmann::json& spec, const TokenHints& hints);

/// One entry of "added_tokens" or "added_tokens_decoder" but for its id.
absl::StatusOr<AddedToken> ParseAddedToken(const nlohmann::json& spec);

}  // namespace quicksilver
