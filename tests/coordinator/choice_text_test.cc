#include "coordinator/service/choice_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "tests/text/tiny_model.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;

// Ids below 256 are bytes, so that characters come in pieces.
class ChoiceTextTest : public testing::Test {
 protected:
  void Push(ChoiceText& text, const std::string& bytes) {
    for (const char byte : bytes) {
      if (!text.stopped()) text.Push(static_cast<uint8_t>(byte));
    }
  }

  const std::shared_ptr<const TextModel> model_ = LoadTiny(TinyTokenizer());
};

TEST_F(ChoiceTextTest, APieceIsTheTextOfWholeTokens) {
  ChoiceText text(*model_, {}, /*whole_tokens=*/true);
  Push(text, "a\xC3");
  ChoiceText::Piece piece = text.Take();
  EXPECT_EQ(piece.text, "a");
  EXPECT_THAT(piece.offsets, ElementsAre(0));
  Push(text, "\xA9");
  piece = text.Take();
  EXPECT_EQ(piece.text, "é");
  EXPECT_THAT(piece.offsets, ElementsAre(1, 1)) << "both tokens begin where the character does";
  text.Push(257);  // abc
  piece = text.Take();
  EXPECT_THAT(piece.offsets, ElementsAre(2));
}

TEST_F(ChoiceTextTest, ATokenThatMayBeCutByAStopStringWaitsWhole) {
  ChoiceText text(*model_, {"cX"}, /*whole_tokens=*/true);
  text.Push('-');
  text.Push(257);
  ChoiceText::Piece piece = text.Take();
  EXPECT_EQ(piece.text, "-");
  EXPECT_THAT(piece.offsets, ElementsAre(0));
  EXPECT_EQ(text.held(), "abc") << "without them: ab is let through";
  ChoiceText loose(*model_, {"cX"}, /*whole_tokens=*/false);
  loose.Push(257);
  EXPECT_EQ(loose.Take().text, "ab");
  EXPECT_EQ(loose.taken(), 0u);

  text.Push('X');
  EXPECT_TRUE(text.stopped());
  text.Finish();
  piece = text.Take();
  EXPECT_EQ(piece.text, "ab");
  EXPECT_THAT(piece.offsets, ElementsAre(1)) << "the token that was cut";
  EXPECT_EQ(text.tokens(), 2u);
}

TEST_F(ChoiceTextTest, WhatNeverBecameACharacterComesAtTheEnd) {
  ChoiceText text(*model_, {}, /*whole_tokens=*/true);
  Push(text, "a\xF0\x9F");
  EXPECT_EQ(text.Take().text, "a");
  text.Finish();
  const ChoiceText::Piece piece = text.Take();
  EXPECT_EQ(piece.text, "\xEF\xBF\xBD");
  EXPECT_THAT(piece.offsets, ElementsAre(1, 1));
  EXPECT_EQ(text.taken(), 3u);
}

// Whenever it is asked: the pieces are the text, their tokens are all tokens, and each piece's bytes are its tokens'.
TEST_F(ChoiceTextTest, PiecesCoverTheTextAndItsTokensExactly) {
  const std::string whole = "def é(x): # 🚀 日本\n  return 'abcEN' + \"ENx\"";
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    ChoiceText text(*model_, {"END"}, /*whole_tokens=*/true);
    std::string told;
    size_t tokens = 0;
    const auto take = [&] {
      const ChoiceText::Piece piece = text.Take();
      EXPECT_EQ(piece.text, whole.substr(tokens, piece.offsets.size())) << "a byte is a token";
      if (!piece.offsets.empty()) {
        EXPECT_EQ(piece.offsets[0], CountCodePoints(told));
      }
      told += piece.text;
      tokens += piece.offsets.size();
    };
    for (const char byte : whole) {
      text.Push(static_cast<uint8_t>(byte));
      if (random() % 3 == 0) take();
    }
    text.Finish();
    take();
    EXPECT_EQ(told, whole);
    EXPECT_EQ(tokens, whole.size());
  }
}

}  // namespace
}  // namespace quicksilver
