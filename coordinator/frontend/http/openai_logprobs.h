#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/core/generate.h"

namespace quicksilver {

/// The value of a choice's `logprobs` (serving.md §1.4, §1.6).
std::string ChatLogprobs(const std::vector<WrittenToken>& tokens, size_t count);
/// `prompt_characters`: what `text_offset` counts from.
std::string CompletionLogprobs(const std::vector<WrittenToken>& tokens, size_t count, uint64_t prompt_characters);

/// At least `count` of the tokens (all, if there are no more), so that they end with a character.
size_t WholeTokens(const std::vector<WrittenToken>& tokens, size_t count);

}  // namespace quicksilver
