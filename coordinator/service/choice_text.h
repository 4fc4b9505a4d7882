#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/text/text.h"

namespace quicksilver {

/// The text of a choice's final tokens: what of it may be sent, and which tokens that is.
class ChoiceText {
 public:
  /// `whole_tokens`: text is released up to where a token and a character end together, so that each piece is the text
  /// of its tokens. `text` outlives this.
  ChoiceText(const TextModel& text, std::vector<std::string> stops, bool whole_tokens);

  struct Piece {
    std::string text;
    /// With whole_tokens: the piece's tokens, which follow those of the pieces before, each as the characters of the
    /// text before it.
    std::vector<uint64_t> offsets;
  };

  /// Not after a stop string was found or Finish().
  void Push(int32_t token);
  /// No more tokens come.
  void Finish();
  /// What may be sent and was not taken yet.
  Piece Take();

  bool stopped() const { return stopped_; }  ///< A stop string was found.
  /// Tokens of the text; behind a stop string those that begin before it.
  uint32_t tokens() const { return static_cast<uint32_t>(starts_.size()); }
  /// Those whose text has been taken whole.
  uint32_t taken() const;
  /// Text of final tokens that has not been taken, and the detokenizer behind it.
  const std::string& held() const { return held_; }
  const Detokenizer& detokenizer() const { return detokenizer_; }

 private:
  void Match(const std::string& text);
  uint64_t EndOf(size_t token) const { return token + 1 < starts_.size() ? starts_[token + 1] : detokenized_bytes_; }

  const bool whole_tokens_;
  Detokenizer detokenizer_;
  StopMatcher matcher_;
  std::vector<uint64_t> starts_;  // For each token, the bytes of text before it.
  std::vector<bool> whole_;       // For each token, whether its text ends with a character.
  std::string held_;
  uint64_t detokenized_bytes_ = 0;
  uint64_t passed_bytes_ = 0;  // No stop string can begin before.
  uint64_t taken_bytes_ = 0;
  uint64_t taken_characters_ = 0;
  size_t told_ = 0;  // Tokens of the pieces so far.
  bool stopped_ = false;
  bool finished_ = false;
};

}  // namespace quicksilver
