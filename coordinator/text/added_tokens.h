#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quicksilver {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;
  bool single_word = false;  ///< Matches only where no word character touches it.
  bool lstrip = false;       ///< Takes the white space before it along.
  bool rstrip = false;
  bool normalized = false;  ///< Sought in the normalized text.
};

/// Finds added tokens in text: at each place the longest, from left to right. Immutable once built, thread-safe.
class AddedTokenFinder {
 public:
  struct Match {
    size_t begin = 0;  ///< Bytes, white space taken along included.
    size_t end = 0;
    int32_t id = -1;
  };
  enum class Want { kSpecial, kOrdinary };

  /// `form` is what the text will show for `token`. Equal forms: the later counts.
  void Add(const AddedToken& token, std::string_view form);

  /// Appends the matches of the wanted kind that lie in bytes [begin, end) of `text`, but for white space they take
  /// along; in order. As in the Hugging Face library with encode_special_tokens, tokens of the other kind still cover
  /// their text, and a token may begin inside white space that the one before it took.
  void FindIn(std::string_view text, size_t begin, size_t end, Want want, std::vector<Match>& matches) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, int32_t>> children;  // Few; in no order.
    int32_t token = -1;                                 // Index into tokens_.
  };
  int32_t Child(int32_t node, char byte) const;
  Match FindAt(std::string_view text, size_t at) const;
  static void TakeSpaces(const AddedToken& token, std::string_view text, size_t taken, Match& match);

  std::vector<Node> nodes_{Node{}};
  std::vector<AddedToken> tokens_;
};

}  // namespace quicksilver
