#pragma once

#include <cstdint>
#include <vector>

#include "tests/support/tiny_gemma.h"
#include "worker/decoding/procedures/renoise.h"

namespace quicksilver {

/// One step of a canvas, by decoding.md §7.
struct DecodedStep {
  std::vector<TokenId> input;
  std::vector<TokenId> best;
  bool operator==(const DecodedStep&) const = default;
};

/// What a decoding gives.
struct DecodedAnswer {
  std::vector<DecodedStep> steps;
  std::vector<TokenId> tokens;  ///< Of the answer, all canvases whole.
};

/// The procedure by its definition, on the reference. The model's canvas and vocabulary are those of TinyGemma.
DecodedAnswer DecodeByDefinition(const TinyGemma& model, const std::vector<TokenId>& prompt,
                                 const Renoise::Settings& settings, int32_t blocks);

/// Settings of which hardly any row is accepted, …
Renoise::Settings NoisyRenoise();
/// … and of which all soon are, so that the canvas settles.
Renoise::Settings SettlingRenoise();

}  // namespace quicksilver
