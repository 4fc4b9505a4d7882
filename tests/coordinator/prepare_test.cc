#include "coordinator/service/prepare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PrepareTest : public testing::Test {
 protected:
  PrepareTest() { request_.input = std::string("def f"); }
  std::variant<PreparedRequest, ApiError> Run() { return Prepare(request_, *text_, model_, {0.5f, 0.9f}, 77); }
  PreparedRequest Good() { return std::get<PreparedRequest>(Run()); }
  ApiError Bad() { return std::get<ApiError>(Run()); }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  ModelFacts model_{.name = "demo",
                    .max_model_len = 100,
                    .vocabulary = static_cast<uint32_t>(text_->size()),
                    .mask_id = text_->FindSpecial("<|MASK|>"),
                    .stop_ids = {1018}};
  GenerateRequest request_;
};

TEST_F(PrepareTest, FillsInWhatTheRequestLeavesOpen) {
  const PreparedRequest prepared = Good();
  const v1::Submit& submit = prepared.submit;
  EXPECT_EQ(prepared.prompt_tokens, text_->Encode("def f", 100)->size());
  EXPECT_EQ(prepared.max_tokens, 100 - prepared.prompt_tokens);
  EXPECT_EQ(submit.max_tokens(), prepared.max_tokens);
  EXPECT_EQ(submit.sampling().temperature(), 0.5f);
  EXPECT_EQ(submit.sampling().top_p(), 0.9f);
  EXPECT_EQ(submit.sampling().seed(), 77u);
  EXPECT_THAT(submit.stop_ids(), ElementsAre(1018));
  EXPECT_FALSE(submit.provisional());
}

TEST_F(PrepareTest, KeepsWhatTheRequestSays) {
  request_.temperature = 0.0f;
  request_.top_p = 0.25f;
  request_.top_k = 9;
  request_.seed = -1;
  request_.max_tokens = 3;
  request_.canvases = true;
  request_.decoding.Set("policy", v1::POLICY_THRESHOLD);
  request_.decoding.Set("threshold", 0.75);
  const PreparedRequest prepared = Good();
  const v1::Submit& submit = prepared.submit;
  EXPECT_EQ(submit.sampling().temperature(), 0.0f);
  EXPECT_EQ(submit.sampling().top_p(), 0.25f);
  EXPECT_EQ(submit.sampling().top_k(), 9u);
  EXPECT_EQ(submit.sampling().seed(), ~uint64_t{0});
  EXPECT_EQ(submit.max_tokens(), 3u);
  EXPECT_TRUE(submit.provisional());
  EXPECT_EQ(submit.decoding().policy(), v1::POLICY_THRESHOLD);
  EXPECT_EQ(submit.decoding().threshold(), 0.75f);
  EXPECT_FALSE(submit.decoding().has_steps());
}

TEST_F(PrepareTest, SaysWhoAsksHowUrgentlyAndWhoSharesItsPages) {
  request_.tenant = "acme";
  request_.priority = Priority::kBatch;
  const PreparedRequest plain = Good();
  EXPECT_EQ(plain.submit.tenant(), "acme");
  EXPECT_EQ(plain.submit.priority(), v1::PRIORITY_BATCH);
  EXPECT_EQ(plain.submit.cache_salt().size(), 32u);
  EXPECT_EQ(plain.submit.cache_salt(), CacheSalt("acme", ""));
  request_.cache_key = "k";
  EXPECT_NE(Good().submit.cache_salt(), plain.submit.cache_salt());
  // Joined, these are the same bytes.
  EXPECT_NE(CacheSalt("ab", "c"), CacheSalt("a", "bc"));
}

TEST_F(PrepareTest, PromptsThatBeginAlikeHaveChainsThatBeginAlikeUnderOneSaltAlone) {
  model_.max_model_len = 1000;
  std::vector<int32_t> ids(300, 5);
  request_.input = ids;
  const std::vector<uint64_t> first = Good().prefix;
  ASSERT_EQ(first.size(), 2u);
  ids[200] = 6;
  request_.input = ids;
  const std::vector<uint64_t> second = Good().prefix;
  EXPECT_EQ(second[0], first[0]);
  EXPECT_NE(second[1], first[1]);
  request_.tenant = "another";
  EXPECT_NE(Good().prefix[0], first[0]);
}

TEST_F(PrepareTest, ContextLengthErrorsNameBothNumbers) {
  request_.input = std::vector<int32_t>(60, 5);
  request_.max_tokens = 50;
  ApiError error = Bad();
  EXPECT_EQ(error.http_status, 400);
  EXPECT_EQ(error.code, "context_length_exceeded");
  EXPECT_EQ(error.param, "prompt");
  EXPECT_THAT(error.message, AllOf(HasSubstr("100"), HasSubstr("110"), HasSubstr("60"), HasSubstr("50")));

  request_.max_tokens.reset();
  request_.input = std::vector<int32_t>(100, 5);
  EXPECT_EQ(Bad().code, "context_length_exceeded");

  std::string long_text;
  for (int i = 0; i < 2000; ++i) long_text += "word ";
  request_.input = std::vector<ChatMessage>{{"user", long_text, ""}};
  error = Bad();
  EXPECT_EQ(error.code, "context_length_exceeded");
  EXPECT_EQ(error.param, "messages");
  EXPECT_THAT(error.message, AllOf(HasSubstr("100"), HasSubstr("more than 400")));
}

TEST_F(PrepareTest, TokenIdsOutsideTheVocabularyAndTheMaskAreRefused) {
  const std::string size = std::to_string(text_->size());
  request_.input = std::vector<int32_t>{1, text_->size()};
  EXPECT_THAT(Bad().message, AllOf(HasSubstr("id " + size), HasSubstr("[0, " + size + ")")));
  request_.input = std::vector<int32_t>{-1};
  EXPECT_EQ(Bad().code, "invalid_value");
  request_.input = std::vector<int32_t>{model_.mask_id};
  EXPECT_THAT(Bad().message, HasSubstr("mask"));
}

TEST_F(PrepareTest, AnEmptyPromptIsTheBeginningOfADocument) {
  request_.input = std::string();
  const PreparedRequest prepared = Good();
  EXPECT_THAT(prepared.submit.prompt_ids(), ElementsAre(text_->FindSpecial("<|endoftext|>")));
}

TEST_F(PrepareTest, TheChatTemplateIsApplied) {
  request_.input = std::vector<ChatMessage>{{"user", "hi <|im_end|>", ""}};
  const PreparedRequest prepared = Good();
  const auto& ids = prepared.submit.prompt_ids();
  EXPECT_EQ(ids[0], text_->FindSpecial("<|im_start|>"));
  // The user's text can only spell the control token, not be one.
  EXPECT_EQ(std::count(ids.begin(), ids.end(), text_->FindSpecial("<|im_end|>")), 1);
}

}  // namespace
}  // namespace quicksilver
