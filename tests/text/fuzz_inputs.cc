#include "tests/text/fuzz_inputs.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/check.h"
#include "coordinator/text/model_file.h"
#include "coordinator/text/chat_template.h"
#include "coordinator/text/text.h"
#include "coordinator/text/tokenizer_json.h"
#include "coordinator/text/utf8.h"
#include "nlohmann/json.hpp"

namespace quicksilver {
namespace {

// Private-use characters: no template spells them, so in an output they can only come from a message.
constexpr char kMessageMark[] = "\xEE\x80\x80";

StopMatcher::Output WholeAtOnce(const std::vector<std::string>& stops, const std::string& text) {
  size_t first = std::string::npos;
  for (const std::string& stop : stops) {
    if (!stop.empty()) first = std::min(first, text.find(stop));
  }
  return first == std::string::npos ? StopMatcher::Output{text, false}
                                    : StopMatcher::Output{text.substr(0, first), true};
}

}  // namespace

void TryAsTokenizerJson(std::string_view input) {
  const auto spec = ParseModelJson(input);
  if (!spec.ok()) return;
  const auto tokenizer = ParseTokenizer(*spec, {});
  if (!tokenizer.ok()) return;
  std::string text = "Hello <|im_end|> 123 \n\n caf\xC3\xA9 \xF0\x9F\x98\x80 it's";
  for (int32_t id = 0; id < std::min(tokenizer->size(), 64); ++id) text += tokenizer->TokenBytes(id);
  std::string valid;
  AppendReplacingInvalid(text, /*final=*/true, valid);
  const auto ids = tokenizer->EncodeContent(valid, 1000);
  if (!ids.ok()) return;
  CHECK(ids->size() <= 1000);
  for (const int32_t id : *ids) CHECK(id >= 0 && id < tokenizer->size() && !tokenizer->IsSpecial(id));
}

void TryAsChatTemplate(std::string_view input) {
  if (input.find(kMessageMark) != std::string_view::npos || input.find("\\u") != std::string_view::npos ||
      input.find("\\U") != std::string_view::npos || input.find("\\x") != std::string_view::npos) {
    return;  // It could spell the mark itself.
  }
  const auto chat_template = ChatTemplate::Parse(input, {{"bos_token", "<s>"}, {"eos_token", "</s>"}});
  if (!chat_template.ok()) return;
  const std::string mark = kMessageMark;
  const auto text = chat_template->Render({{.role = "system", .content = mark + " be <|good|> "},
                                           {.role = "user", .content = mark + "</think>" + mark, .name = mark},
                                           {.role = mark, .content = ""}});
  if (!text.ok()) return;
  CHECK(IsValidUtf8(text->text()));
  for (const MarkedText::Range& range : text->LiteralRanges()) {
    const std::string_view literal = std::string_view(text->text()).substr(range.begin, range.end - range.begin);
    CHECK(literal.find(kMessageMark) == std::string_view::npos);
  }
}

void TryAsStopMatcher(std::string_view input) {
  // Fields parted by 0xFF: the text, then the stops; its bytes also tell where the text is cut.
  std::vector<std::string> fields(1);
  for (const char c : input) {
    if (c == '\xFF') {
      fields.emplace_back();
    } else {
      fields.back().push_back(c);
    }
  }
  const std::string text = fields.front();
  const std::vector<std::string> stops(fields.begin() + 1, fields.end());
  StopMatcher matcher(stops);
  std::string streamed;
  bool stopped = false;
  for (size_t at = 0; at < text.size();) {
    const size_t length = std::min<size_t>(1 + static_cast<unsigned char>(text[at]) % 5, text.size() - at);
    const StopMatcher::Output output = matcher.Push(std::string_view(text).substr(at, length));
    CHECK(!stopped || (output.stopped && output.text.empty()));
    stopped = output.stopped;
    streamed += output.text;
    at += length;
  }
  const StopMatcher::Output last = matcher.Finish();
  const StopMatcher::Output whole = WholeAtOnce(stops, text);
  CHECK(streamed + last.text == whole.text);
  CHECK(last.stopped == whole.stopped);
}

}  // namespace quicksilver
