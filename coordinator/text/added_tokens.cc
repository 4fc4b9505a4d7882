#include "coordinator/text/added_tokens.h"

#include <unicode/uchar.h>

#include "coordinator/text/utf8.h"

namespace quicksilver {
namespace {

// \w of the Hugging Face library's regular expressions.
bool IsWord(char32_t c) {
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL) ||
         (U_MASK(u_charType(c)) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0;
}

// Requires: at > 0.
CodePoint CodePointBefore(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return CodePointAt(text, at);
}

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && IsWord(CodePointBefore(text, begin).value)) return false;
  return end == text.size() || !IsWord(CodePointAt(text, end).value);
}

}  // namespace

int32_t AddedTokenFinder::Child(int32_t node, char byte) const {
  for (const auto& [label, child] : nodes_[node].children) {
    if (label == static_cast<uint8_t>(byte)) return child;
  }
  return -1;
}

void AddedTokenFinder::Add(const AddedToken& token, std::string_view form) {
  int32_t node = 0;
  for (const char byte : form) {
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_[node].children.emplace_back(static_cast<uint8_t>(byte), child);
      nodes_.emplace_back();
    }
    node = child;
  }
  if (node == 0) return;
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

AddedTokenFinder::Match AddedTokenFinder::FindAt(std::string_view text, size_t at) const {
  Match match{.begin = at, .end = at};
  int32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    node = Child(node, text[i]);
    if (node < 0) break;
    if (nodes_[node].token >= 0) match = {at, i + 1, nodes_[node].token};
  }
  return match;
}

void AddedTokenFinder::TakeSpaces(const AddedToken& token, std::string_view text, size_t taken, Match& match) {
  while (token.lstrip && match.begin > taken) {
    const CodePoint c = CodePointBefore(text, match.begin);
    if (!IsWhiteSpace(c.value)) break;
    match.begin -= c.length;
  }
  while (token.rstrip && match.end < text.size()) {
    const CodePoint c = CodePointAt(text, match.end);
    if (!IsWhiteSpace(c.value)) break;
    match.end += c.length;
  }
}

void AddedTokenFinder::FindIn(std::string_view text, size_t begin, size_t end, Want want,
                              std::vector<Match>& matches) const {
  if (tokens_.empty()) return;
  size_t taken = matches.empty() ? 0 : matches.back().end;
  for (size_t at = begin; at < end;) {
    Match match = FindAt(text.substr(0, end), at);
    if (match.id < 0) {
      ++at;
      continue;
    }
    at = match.end;
    const AddedToken& token = tokens_[match.id];
    if (token.special != (want == Want::kSpecial)) continue;
    if (token.single_word && !StandsAlone(text, match.begin, match.end)) continue;
    TakeSpaces(token, text, taken, match);
    match.id = token.id;
    taken = match.end;
    matches.push_back(match);
  }
}

}  // namespace quicksilver
