#include <string>
#include <vector>

#include "coordinator/text/chat_template.h"
#include "gmock/gmock.h"
#include "tests/text/tiny_model.h"

namespace quicksilver {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Range = MarkedText::Range;

const std::vector<TemplateMessage>& Messages() {
  static const auto* const kMessages = new std::vector<TemplateMessage>{
      {.role = "user", .content = " abc ", .name = "n"}, {.role = "zed", .content = "XY"}};
  return *kMessages;
}

absl::StatusOr<MarkedText> Render(const std::string& source) {
  const auto chat_template = ChatTemplate::Parse(source, {{"bos_token", "<s>"}});
  if (!chat_template.ok()) return chat_template.status();
  return chat_template->Render(Messages());
}

std::string Text(const std::string& source) {
  const auto text = Render(source);
  EXPECT_TRUE(text.ok()) << source << ": " << text.status();
  return text.ok() ? text->text() : "";
}

// The bytes of content, the others as dots.
std::string Marks(const std::string& expression) {
  const auto text = Render("{% set c = messages[0].content %}{{ " + expression + " }}");
  EXPECT_TRUE(text.ok()) << expression << ": " << text.status();
  if (!text.ok()) return "";
  std::string marks(text->size(), '.');
  for (const Range& range : text->content()) {
    marks.replace(range.begin, range.end - range.begin, text->text(), range.begin, range.end - range.begin);
  }
  return marks;
}

std::string ParseError(const std::string& source) {
  const auto chat_template = ChatTemplate::Parse(source, {});
  EXPECT_EQ(chat_template.status().code(), absl::StatusCode::kInvalidArgument) << source;
  return std::string(chat_template.status().message());
}

std::string RenderError(const std::string& source) {
  const auto text = Render(source);
  EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << source;
  return std::string(text.status().message());
}

TEST(ChatTemplateTest, EveryWayOfCopyingTextKeepsItsMarks) {
  EXPECT_EQ(Marks("'<' + c + '>'"), ". abc .");
  EXPECT_EQ(Marks("'<' ~ c ~ '>' ~ 1"), ". abc ..");
  EXPECT_EQ(Marks("c | trim"), "abc");
  EXPECT_EQ(Marks("('  x' + c).strip()"), ". abc");
  EXPECT_EQ(Marks("('x' + c + 'y')[1:4]"), " ab");
  EXPECT_EQ(Marks("('x' + c + 'y')[::-1]"), ". cba .");
  EXPECT_EQ(Marks("('x' + c)[2]"), "a");
  EXPECT_EQ(Marks("('x' + c) | upper"), ". ABC ");
  EXPECT_EQ(Marks("('x' + c) | title"), ". Abc ");
  EXPECT_EQ(Marks("('x' + c) | reverse"), " cba .");
  EXPECT_EQ(Marks("('x' + c).split('b') | join('--')"), ". a..c ");
  EXPECT_EQ(Marks("('x' + c).split() | join('-')"), "..abc");
  EXPECT_EQ(Marks("['<', c, '>'] | join(c)"), ". abc  abc  abc .");
  EXPECT_EQ(Marks("'x-x'.replace('-', c)"), ". abc .");
  EXPECT_EQ(Marks("('x' + c).replace('b', '<s>')"), ". a...c ");
  EXPECT_EQ(Marks("('x' + c).removeprefix('x ')"), "abc ");
  EXPECT_EQ(Marks("c * 2"), " abc  abc ");
  EXPECT_EQ(Marks("(c | list)[1]"), "a");
  EXPECT_EQ(Marks("c | first ~ c | last ~ (none | default(c)) ~ (missing | default(c))"), "  .... abc ");
  EXPECT_EQ(Marks("messages | map(attribute='content') | join"), " abc XY");
  EXPECT_EQ(Marks("[c] | tojson"), "[\" abc \"]");
  EXPECT_EQ(Marks("messages[0].name ~ messages[0].role ~ messages[1].role"), "n....zed");
  EXPECT_EQ(Marks("(c if c else 'x') ~ (c or 'y') ~ (c and c)"), " abc  abc  abc ");
  EXPECT_EQ(Marks("{'k': c}.get('k') ~ ({'k': c}.values() | first)"), " abc  abc ");
}

TEST(ChatTemplateTest, BlocksAndNamespacesKeepMarks) {
  const auto text = Render("{% set b %}<{{ messages[0].content }}>{% endset %}{% set ns = namespace(x=b) %}{{ ns.x }}");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->text(), "< abc >");
  EXPECT_THAT(text->content(), ElementsAre(Range{1, 6}));
}

TEST(ChatTemplateTest, AContentCannotBecomeAKeyAndLoseItsMarks) {
  EXPECT_THAT(RenderError("{% for k in {messages[0].content: 1} %}{{ k }}{% endfor %}"), HasSubstr("keys"));
}

TEST(ChatTemplateTest, TrimAndLstripBlocksAreOn) {
  EXPECT_EQ(Text("  {% if true %}\n  x\n  {% endif %}\ny\n"), "  x\ny");
  EXPECT_EQ(Text("a  {%- if true -%}\n b {% endif %}"), "ab ");
  EXPECT_EQ(Text("{# c #}\n{{ 1 }}\n{{ 2 }}"), "1\n2");
  EXPECT_EQ(Text("x {%+ if true +%}\ny{% endif %}"), "x \ny");
}

TEST(ChatTemplateTest, LoopsKnowWhereTheyAre) {
  EXPECT_EQ(
      Text("{% for m in messages %}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}"),
      "0TrueFalse2;1FalseTrue2;");
  EXPECT_EQ(Text("{% for m in messages[1:] %}{{ m.role }}{% else %}none{% endfor %}"), "zed");
  EXPECT_EQ(Text("{% for m in [] %}x{% else %}none{% endfor %}"), "none");
}

TEST(ChatTemplateTest, ASetInALoopStaysInItAndANamespaceDoesNot) {
  EXPECT_EQ(Text("{% set x = 1 %}{% set ns = namespace(x=1) %}{% for m in messages %}{% set x = 2 %}{% set ns.x = 2 %}"
                 "{% endfor %}{{ x }}{{ ns.x }}"),
            "12");
}

TEST(ChatTemplateTest, RaisedMessagesComeOutWithTheirLine) {
  EXPECT_EQ(RenderError("\n{{ raise_exception('Only user roles') }}"), "chat template: line 2: Only user roles");
}

TEST(ChatTemplateTest, WhatHasNoMeaningIsAnErrorWithItsLine) {
  EXPECT_THAT(RenderError("\n\n{{ missing.field }}"), HasSubstr("line 3: an undefined value"));
  EXPECT_THAT(RenderError("{{ 'a' + 1 }}"), HasSubstr("line 1: str + int"));
  EXPECT_THAT(RenderError("{{ nope() }}"), HasSubstr("'nope' is undefined"));
  EXPECT_THAT(RenderError("{{ messages }}"), HasSubstr("list cannot be printed"));
  EXPECT_THAT(RenderError("{{ 1 // 0 }}"), HasSubstr("division by zero"));
  EXPECT_THAT(RenderError("{{ 9223372036854775807 + 1 }}"), HasSubstr("out of range"));
  EXPECT_THAT(RenderError("{% set x = 1 %}{% set x.y = 2 %}"), HasSubstr("not a namespace"));
  EXPECT_THAT(RenderError("{{ 'a' | trim(1, 2) }}"), HasSubstr("too many arguments"));
}

TEST(ChatTemplateTest, UnsupportedSyntaxIsRefusedAtLoadWithItsLine) {
  EXPECT_THAT(ParseError("\n{% macro f() %}{% endmacro %}"), HasSubstr("line 2: tag 'macro'"));
  EXPECT_THAT(ParseError("{{ x | nope }}"), HasSubstr("filter nope"));
  EXPECT_THAT(ParseError("{{ x is nope }}"), HasSubstr("test nope"));
  EXPECT_THAT(ParseError("{{ x.nope() }}"), HasSubstr("method nope()"));
  EXPECT_THAT(ParseError("{{ x"), HasSubstr("a tag has no end"));
  EXPECT_THAT(ParseError("{{ 'x }}"), HasSubstr("a string has no end"));
  EXPECT_THAT(ParseError("{% if x %}\n"), HasSubstr("before 'endif'"));
  EXPECT_THAT(ParseError("{% endif %}"), HasSubstr("tag 'endif'"));
  EXPECT_THAT(ParseError("{{ 1 + }}"), HasSubstr("unexpected end of the tag"));
  EXPECT_THAT(ParseError("{{ (1] }}"), HasSubstr("unexpected ']'"));
  EXPECT_THAT(ParseError("{{ a ? b }}"), HasSubstr("unexpected character '?'"));
  EXPECT_THAT(ParseError("{% break %}"), HasSubstr("outside a loop"));
  EXPECT_THAT(ParseError("{# x"), HasSubstr("a comment has no end"));
}

TEST(ChatTemplateTest, DeepOrLongTemplatesAreRefusedNotCrashed) {
  const auto repeat = [](const std::string& text, int count) {
    std::string all;
    for (int i = 0; i < count; ++i) all += text;
    return all;
  };
  for (const std::string& open :
       {repeat("(", 50'000), repeat("[", 100'000), repeat("not ", 100'000), repeat("-", 100'000),
        repeat("x if ", 100'000), repeat("a(", 50'000), repeat("{1:", 50'000)}) {
    ParseError("{{ " + open);
  }
  ParseError("{{ 1" + repeat(" + 1", 50'000) + " }}");
  ParseError("{{ x" + repeat(".y", 50'000) + " }}");
  ParseError("{{ x" + repeat("|trim", 50'000) + " }}");
  ParseError("{{ 1" + repeat(" if 1", 50'000) + " }}");
  ParseError(repeat("{% if 1 %}", 50'000));
  ParseError(repeat("{% for a in b %}", 50'000));
  ParseError(std::string((1 << 20) + 1, 'x'));
}

TEST(ChatTemplateTest, RunawayTemplatesAreStopped) {
  for (const char* source :
       {"{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{% set ns = namespace(x='abcdefgh') %}{% for a in range(1000) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for a in range(1000) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set x = 'abcdefgh' * 100000 %}{% for a in range(100000) %}{{ x }}{% endfor %}"}) {
    EXPECT_EQ(Render(source).status().code(), absl::StatusCode::kResourceExhausted) << source;
  }
  EXPECT_THAT(
      RenderError("{% set ns = namespace(x=[]) %}{% for a in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}"),
      HasSubstr("nested too deep"));
}

class EncodeChatTest : public ::testing::Test {
 protected:
  static std::vector<int32_t> Encode(const std::string& source, const std::vector<TemplateMessage>& messages,
                                     const json& tokenizer = TinyTokenizer()) {
    const auto model = LoadTiny(tokenizer, {{"chat_template", source}, {"bos_token", "<s>"}, {"eos_token", "</s>"}});
    const auto ids = model->EncodeChat(messages, 1000);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.value_or(std::vector<int32_t>{});
  }
};

TEST_F(EncodeChatTest, OnlyTheTemplatesOwnTokensAreSpecial) {
  const char* const source = "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}<mask>";
  EXPECT_THAT(Encode(source, {{.role = "user", .content = "</s>"}}), ElementsAre(300, '<', '/', 's', '>', 301, 302));
}

// Half from the template, half from the message: no special token either.
TEST_F(EncodeChatTest, ASpecialTokenIsNotCompletedByContent) {
  EXPECT_THAT(Encode("<{{ messages[0].content }}>", {{.role = "user", .content = "mask"}}),
              ElementsAre('<', 'm', 'a', 's', 'k', '>'));
  EXPECT_THAT(Encode("{{ messages[0].content }}</s>", {{.role = "user", .content = "<"}}), ElementsAre('<', 301));
}

TEST_F(EncodeChatTest, AnUnknownRoleIsContentAndAKnownOneIsNot) {
  json tokenizer = TinyTokenizer();
  tokenizer["added_tokens"].push_back(Added(303, "<user>"));
  EXPECT_THAT(Encode("<{{ messages[0].role }}>", {{.role = "user"}}, tokenizer), ElementsAre(303));
  EXPECT_THAT(Encode("<{{ messages[0].role }}>", {{.role = "mask"}}, tokenizer),
              ElementsAre('<', 'm', 'a', 's', 'k', '>'));
}

TEST_F(EncodeChatTest, ContentAndTheTextBesideItAreEncodedAsOne) {
  EXPECT_THAT(Encode("a{{ messages[0].content }}c", {{.role = "user", .content = "b"}}), ElementsAre(257));
}

TEST_F(EncodeChatTest, TheTemplateFileWinsAndTheDefaultOfAListIsTaken) {
  ModelDirectory directory;
  directory.Write("tokenizer.json", TinyTokenizer())
      .Write("tokenizer_config.json",
             json{{"chat_template",
                   {{{"name", "tool_use"}, {"template", "T"}}, {{"name", "default"}, {"template", "D"}}}}});
  EXPECT_THAT((*directory.Load())->EncodeChat({}, 9).value(), ElementsAre('D'));
  directory.Write("chat_template.jinja", std::string("F"));
  EXPECT_THAT((*directory.Load())->EncodeChat({}, 9).value(), ElementsAre('F'));
}

TEST_F(EncodeChatTest, TooManyIdsNoTemplateAndBadTextAreTold) {
  const auto plain = LoadTiny(TinyTokenizer());
  EXPECT_EQ(plain->EncodeChat(Messages(), 9).status().code(), absl::StatusCode::kInvalidArgument);
  const auto model = LoadTiny(TinyTokenizer(), {{"chat_template", "{{ messages[0].content }}"}});
  EXPECT_EQ(model->EncodeChat({{.role = "user", .content = "xxxx"}}, 3).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(model->EncodeChat({{.role = "user", .content = "\xFF"}}, 9).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quicksilver
