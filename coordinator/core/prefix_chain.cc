#include "coordinator/core/prefix_chain.h"

#include <algorithm>

namespace quicksilver {
namespace {

// A round of murmur3's 64-bit mixer: cheap, and no two of the values that it joins commute.
uint64_t Mix(uint64_t state, uint64_t value) {
  uint64_t x = (state ^ value) * 0xFF51AFD7ED558CCDu;
  x ^= x >> 33;
  x *= 0xC4CEB9FE1A85EC53u;
  return x ^ (x >> 29);
}

}  // namespace

std::vector<uint64_t> PrefixChain(absl::Span<const int32_t> tokens, std::string_view salt) {
  uint64_t state = Mix(0x9E3779B97F4A7C15u, salt.size());
  for (const char c : salt) state = Mix(state, static_cast<unsigned char>(c));
  const size_t runs = std::min(tokens.size() / kPrefixRunTokens, kPrefixChainMax);
  std::vector<uint64_t> chain;
  chain.reserve(runs);
  for (size_t i = 0; i < runs * kPrefixRunTokens; ++i) {
    state = Mix(state, static_cast<uint32_t>(tokens[i]));
    if ((i + 1) % kPrefixRunTokens == 0) chain.push_back(state);
  }
  return chain;
}

}  // namespace quicksilver
