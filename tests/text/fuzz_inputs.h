#pragma once

#include <string_view>

namespace quicksilver {

// What a fuzzer, and the replay of its corpus, feeds: any bytes. Each aborts when a promise is broken.

/// A tokenizer.json: it loads or is refused; what loads never makes a special token of text.
void TryAsTokenizerJson(std::string_view input);

/// A chat template: it renders or is refused; no content comes out as the template's own words.
void TryAsChatTemplate(std::string_view input);

/// Stop strings and text: streamed in any pieces the output is that of the whole.
void TryAsStopMatcher(std::string_view input);

}  // namespace quicksilver
