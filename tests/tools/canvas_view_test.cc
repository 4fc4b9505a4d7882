#include "tools/canvas_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(CanvasViewTest, FinalTextIsBrightProvisionalDimAndMasksAreShaded) {
  CanvasView view(40, 10);
  EXPECT_EQ(view.Draw({{SpanLook::kFinal, "ab", 1}, {SpanLook::kProvisional, "cd", 1}, {SpanLook::kMasked, "", 2}}),
            "\x1b[1m"
            "ab\x1b[0m\x1b[2m"
            "cd\x1b[0m\x1b[2m░░\x1b[0m");
}

TEST(CanvasViewTest, ARedrawErasesAllLinesOfTheLastDraw) {
  CanvasView view(40, 10);
  view.Draw({{SpanLook::kFinal, "one\ntwo\nthree", 3}});
  EXPECT_THAT(view.Draw({{SpanLook::kFinal, "x", 1}}), testing::StartsWith("\r\x1b[2A\x1b[J"));
}

TEST(CanvasViewTest, LongLinesWrapAtTheWidthSoThatErasingCountsThem) {
  CanvasView view(8, 10);
  view.Draw({{SpanLook::kFinal, std::string(20, 'x'), 5}});  // Three lines of eight columns.
  EXPECT_THAT(view.Draw({{SpanLook::kFinal, "x", 1}}), testing::StartsWith("\r\x1b[2A"));
  view.Draw({{SpanLook::kFinal, "漢字漢字漢", 5}});  // Ten columns: two lines.
  EXPECT_THAT(view.Draw({{SpanLook::kFinal, "x", 1}}), testing::StartsWith("\r\x1b[1A"));
}

TEST(CanvasViewTest, AnAnswerTallerThanTheTerminalShowsItsEndAndIsWholeWhenFinished) {
  CanvasView view(20, 4);
  const std::vector<ViewSpan> spans = {{SpanLook::kFinal, "l1\nl2\nl3\nl4\nl5", 9}};
  EXPECT_THAT(view.Draw(spans), testing::AllOf(Not(HasSubstr("l2")), HasSubstr("l3"), HasSubstr("l5")));
  EXPECT_THAT(view.Finish(spans), testing::AllOf(HasSubstr("l1"), HasSubstr("l5\x1b[0m\n")));
}

TEST(CanvasViewTest, ModelOutputCannotSteerTheTerminal) {
  CanvasView view(40, 10);
  EXPECT_THAT(view.Draw({{SpanLook::kFinal, "a\x1b[31mb\x07", 1}}),
              testing::AllOf(HasSubstr("a[31mb"), Not(HasSubstr("\x07"))));
}

TEST(CharacterColumnsTest, CombiningMarksTakeNoneAndWideCharactersTwo) {
  EXPECT_EQ(CharacterColumns("a"), 1);
  EXPECT_EQ(CharacterColumns("م"), 1);
  EXPECT_EQ(CharacterColumns("\xD9\x8E"), 0);  // Arabic fatha.
  EXPECT_EQ(CharacterColumns("漢"), 2);
  EXPECT_EQ(CharacterColumns("😀"), 2);
}

}  // namespace
}  // namespace quicksilver
