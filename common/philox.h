#pragma once

#include <cstdint>

#include "common/portable_log.h"

namespace quicksilver {

struct PhiloxWords {
  uint32_t w[4];
};

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128 random bits for
/// one counter under one key. No state, so the draw depends on nothing but its arguments.
QS_HOST_DEVICE inline PhiloxWords Philox(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// What a draw is for: part of the counter, so that two uses never share bits. Below 128.
enum class DrawPurpose : uint32_t { kGumbel = 0, kConfidence = 1, kTransfer = 2, kRemask = 3, kNoise = 4 };

/// Where a draw happens. Equal places give equal bits, on any rank, batch, step order or device.
struct DrawPlace {
  uint64_t seed = 0;
  uint32_t choice = 0;    ///< Below 2^16.
  uint32_t position = 0;  ///< Absolute, from 0 at the first prompt token.
  uint32_t step = 0;      ///< Forward passes of the sequence before this one.
};

/// The upper 32 bits of UniformDraw for the tokens 4 group to 4 group + 3. Four tokens share them, and each draws its
/// lower bits apart, because they nearly always tell by themselves that a token is not the one to be sampled.
QS_HOST_DEVICE inline PhiloxWords UniformDrawHighWords(const DrawPlace& place, uint32_t group, DrawPurpose purpose) {
  return Philox(place.seed, group, place.position, place.step, (place.choice << 8) | static_cast<uint32_t>(purpose));
}

/// A double in (0, 1): 52 bits and a half, which is exact, so neither end is ever reached.
QS_HOST_DEVICE inline double UniformDraw(const DrawPlace& place, uint32_t token, DrawPurpose purpose) {
  constexpr uint32_t kLowBits = 0x80;  // No purpose has this bit.
  const PhiloxWords four = UniformDrawHighWords(place, token / 4, purpose);
  const uint32_t high =
      (token & 2) == 0 ? ((token & 1) == 0 ? four.w[0] : four.w[1]) : ((token & 1) == 0 ? four.w[2] : four.w[3]);
  const PhiloxWords low = Philox(place.seed, token, place.position, place.step,
                                 (place.choice << 8) | static_cast<uint32_t>(purpose) | kLowBits);
  const uint64_t bits = (uint64_t{high} << 20) | (low.w[0] >> 12);
  return (static_cast<double>(bits) + 0.5) * (1.0 / 4503599627370496.0);
}

/// -ln(-ln u): adding it to logit / T and taking the arg-max samples softmax(logit / T). Doubles, since float
/// noise lowers the diversity of text (arXiv 2409.02908). The same bits on any device.
QS_HOST_DEVICE inline double GumbelDraw(const DrawPlace& place, uint32_t token) {
  return -PortableLog(-PortableLog(UniformDraw(place, token, DrawPurpose::kGumbel)));
}

/// No GumbelDraw exceeds this, which is a little above 53 ln 2: UniformDraw is at most 1 - 2^-53.
inline constexpr double kGumbelDrawMax = 36.75;

}  // namespace quicksilver
