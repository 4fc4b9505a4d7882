#include "coordinator/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "coordinator/text/utf8.h"

namespace quicksilver {
namespace {

constexpr size_t kPatternBytesMax = 64 << 10;
constexpr uint32_t kMatchLimit = 20'000'000;  // Backtracking points of one match.
constexpr uint32_t kDepthLimit = 100'000;
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kJitStackBytesMax = 4 << 20;

std::string ErrorText(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct RegexScratch::State {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytesMax, nullptr);

  ~State() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {
  CHECK(state_->data != nullptr && state_->context != nullptr);
  pcre2_set_match_limit(state_->context, kMatchLimit);
  pcre2_set_depth_limit(state_->context, kDepthLimit);
  pcre2_set_heap_limit(state_->context, kHeapLimitKib);
  pcre2_jit_stack_assign(state_->context, nullptr, state_->stack);
}

RegexScratch::~RegexScratch() = default;

struct Regex::Code {
  pcre2_code* code = nullptr;
  std::string pattern;
  ~Code() { pcre2_code_free(code); }
};

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  if (pattern.size() > kPatternBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a pattern of %d bytes is longer than %d", pattern.size(), kPatternBytesMax));
  }
  ASSIGN_OR_RETURN(const std::string translated, TranslateOniguruma(pattern));
  return CompileTranslated(translated, pattern);
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::ispunct(static_cast<unsigned char>(c))) escaped.push_back('\\');
    escaped.push_back(c);
  }
  return CompileTranslated(escaped, text);
}

absl::StatusOr<Regex> Regex::CompileTranslated(const std::string& translated, std::string_view original) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto compiled = std::make_shared<Code>();
  compiled->pattern = std::string(original);
  // In Oniguruma '^' and '$' always match at line ends.
  compiled->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (compiled->code == nullptr) {
    return absl::InvalidArgumentError(absl::StrFormat("pattern \"%s\": %s", original, ErrorText(error)));
  }
  // Without JIT (a kernel that forbids writable code) the interpreter gives the same matches.
  pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(compiled));
}

absl::Status Regex::ForEachPiece(std::string_view text, RegexScratch& scratch,
                                 absl::FunctionRef<absl::Status(std::string_view, bool)> visit) const {
  size_t search_from = 0;
  size_t piece_begin = 0;
  bool matched_before = false;
  while (search_from <= text.size()) {
    const int rc = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), search_from,
                               PCRE2_NO_UTF_CHECK, scratch.state_->data, scratch.state_->context);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the text cannot be split by pattern \"%s\": %s", code_->pattern, ErrorText(rc)));
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(scratch.state_->data);
    const size_t begin = span[0];
    const size_t end = span[1];
    if (end < begin || end < search_from) break;  // \K inside a lookahead; refused by the translation.
    if (begin == end && matched_before && begin == piece_begin) {
      // An empty match right after a match is skipped, as Oniguruma's iterator does.
      if (search_from == text.size()) break;
      search_from += CodePointAt(text, search_from).length;
      continue;
    }
    if (piece_begin < begin) RETURN_IF_ERROR(visit(text.substr(piece_begin, begin - piece_begin), false));
    if (begin < end) RETURN_IF_ERROR(visit(text.substr(begin, end - begin), true));
    piece_begin = search_from = end;
    matched_before = true;
  }
  if (piece_begin < text.size()) return visit(text.substr(piece_begin), false);
  return absl::OkStatus();
}

}  // namespace quicksilver
