#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/types/span.h"

namespace quicksilver {

/// Prompt tokens to a hash of the chain, and most hashes of one chain: prompts that agree on their first 8,192 tokens
/// are not told apart.
inline constexpr size_t kPrefixRunTokens = 128;
inline constexpr size_t kPrefixChainMax = 64;

/// chain[i] stands for the first (i + 1) * kPrefixRunTokens tokens under `salt` (tenant and cache key): two prompts
/// have as many equal hashes in front as they share whole runs. Empty for a prompt shorter than a run. Pure.
std::vector<uint64_t> PrefixChain(absl::Span<const int32_t> tokens, std::string_view salt);

}  // namespace quicksilver
