#include "coordinator/service/prepare_terms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

using Ids = std::vector<int32_t>;

class PrepareTermsTest : public testing::Test {
 protected:
  PrepareTermsTest() { request_.input = std::string("def f"); }
  PreparedRequest Good() {
    auto prepared = Prepare(request_, *text_, model_, {}, 77);
    if (const auto* error = std::get_if<ApiError>(&prepared)) {
      ADD_FAILURE() << error->message;
      return {};
    }
    return std::get<PreparedRequest>(std::move(prepared));
  }
  ApiError Bad() {
    const auto prepared = Prepare(request_, *text_, model_, {}, 77);
    if (const auto* error = std::get_if<ApiError>(&prepared)) return *error;
    ADD_FAILURE() << "accepted";
    return {};
  }
  Ids Encoded(const std::string& text) { return *text_->Encode(text, 1000); }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  ModelFacts model_{.name = "demo",
                    .max_model_len = 100,
                    .vocabulary = static_cast<uint32_t>(text_->size()),
                    .mask_id = text_->FindSpecial("<|MASK|>"),
                    .family = "llada",
                    .policies = {"static", "threshold"},
                    .infill = true};
  GenerateRequest request_;
};

TEST_F(PrepareTermsTest, APolicyThatTheFamilyCannotRunIsRefusedWithWhatItCan) {
  request_.decoding.Set("policy", static_cast<double>(NumberOf(kPolicyNames, "token_edit")));
  const ApiError error = Bad();
  EXPECT_EQ(error.http_status, 400);
  EXPECT_EQ(error.param, "decoding.policy");
  EXPECT_THAT(error.message, AllOf(HasSubstr("token_edit"), HasSubstr("family llada"), HasSubstr("static, threshold")));
  request_.decoding.Set("policy", static_cast<double>(NumberOf(kPolicyNames, "threshold")));
  EXPECT_EQ(Good().submit.decoding().policy(), v1::POLICY_THRESHOLD);
}

TEST_F(PrepareTermsTest, TheSuffixIsPlainTextBehindTheAnswer) {
  request_.infill.suffix = std::string("return <|MASK|>");
  request_.max_tokens = 7;
  const PreparedRequest prepared = Good();
  const Ids suffix = Encoded("return <|MASK|>");
  EXPECT_THAT(prepared.submit.suffix_ids(), ElementsAreArray(suffix));
  EXPECT_THAT(prepared.submit.suffix_ids(), testing::Not(testing::Contains(model_.mask_id))) << "a text names no token";
  EXPECT_EQ(prepared.prompt_tokens, static_cast<uint32_t>(prepared.submit.prompt_ids_size()) + suffix.size());
  EXPECT_EQ(prepared.submit.max_tokens(), 7u);
}

TEST_F(PrepareTermsTest, PromptSuffixAndAnswerShareTheModelsLength) {
  request_.infill.suffix = Ids(40, 5);
  EXPECT_EQ(Good().max_tokens, 60 - Encoded("def f").size());
  request_.max_tokens = 60;
  ApiError error = Bad();
  EXPECT_EQ(error.code, "context_length_exceeded");
  EXPECT_THAT(error.message, AllOf(HasSubstr("40 in the suffix"), HasSubstr("60 in the completion"), HasSubstr("100")));
  request_.infill.suffix = Ids(100, 5);
  EXPECT_EQ(Bad().code, "context_length_exceeded");
  std::string endless;
  for (int i = 0; i < 500; ++i) endless += "word ";
  request_.infill.suffix = endless;
  error = Bad();
  EXPECT_EQ(error.code, "context_length_exceeded");
  EXPECT_EQ(error.param, "infill.suffix");
}

TEST_F(PrepareTermsTest, TheMaskIsNoTokenThatCanBeGiven) {
  request_.infill.suffix = Ids{5, model_.mask_id};
  EXPECT_THAT(Bad().message, AllOf(HasSubstr("infill.suffix_ids"), HasSubstr("mask")));
  request_.infill = {};
  request_.infill.fixed_ids = {5, -1, model_.mask_id};
  ApiError error = Bad();
  EXPECT_EQ(error.param, "infill.fixed_ids[2]");
  EXPECT_THAT(error.message, AllOf(HasSubstr("mask"), HasSubstr("-1")));
  request_.infill = {};
  request_.infill.draft = Ids{model_.mask_id};
  EXPECT_EQ(Bad().param, "infill.draft_ids[0]");
  request_.infill = {};
  request_.infill.fixed_ids = {text_->size()};
  EXPECT_THAT(Bad().message, HasSubstr("[0, " + std::to_string(text_->size()) + ")"));
}

TEST_F(PrepareTermsTest, GivenTokensLieWithinTheAnswer) {
  request_.max_tokens = 3;
  request_.infill.fixed_ids = {-1, 5, 6};
  request_.infill.draft = Ids{7, -1};
  const PreparedRequest prepared = Good();
  EXPECT_THAT(prepared.submit.fixed_ids(), ElementsAre(-1, 5, 6));
  EXPECT_THAT(prepared.submit.draft_ids(), ElementsAre(7, -1));
  request_.infill.fixed_ids.push_back(5);
  EXPECT_THAT(Bad().message, AllOf(HasSubstr("infill.fixed_ids has 4"), HasSubstr("3 (max_tokens)")));
  request_.infill.fixed_ids.clear();
  request_.infill.draft = std::string("def a_long_name(x, y, z): return x + y + z");
  EXPECT_EQ(Bad().param, "infill.draft_ids");
}

TEST_F(PrepareTermsTest, AModelThatSeesNoRightContextSaysSo) {
  model_.infill = false;
  request_.infill.suffix = std::string("tail");
  ApiError error = Bad();
  EXPECT_EQ(error.http_status, 400);
  EXPECT_EQ(error.param, "infill.suffix");
  EXPECT_THAT(error.message, AllOf(HasSubstr("cannot see right context"), HasSubstr("prompt format")));
  request_.infill = {};
  request_.infill.fixed_ids = {5};
  EXPECT_EQ(Bad().param, "infill.fixed_ids");
  model_.grid = v1::GRID_CANVAS;
  EXPECT_THAT(Good().submit.fixed_ids(), ElementsAre(5)) << "a canvas sees all of itself";
  model_.grid = v1::GRID_ABSOLUTE;
  request_.infill = {};
  request_.infill.suffix = std::string();
  request_.infill.draft = std::string("def");
  EXPECT_THAT(Good().submit.draft_ids(), ElementsAreArray(Encoded("def")));
}

TEST_F(PrepareTermsTest, BiasesAndForbiddenTokensAreOneAscendingList) {
  request_.logit_bias = {{9, 1.5f}, {4, -100.0f}, {7, 3.0f}};
  request_.forbidden_ids = {7, 2, 2};
  request_.presence_penalty = 0.5f;
  request_.frequency_penalty = -0.5f;
  const PreparedRequest prepared = Good();
  const v1::ResolvedSampling& sampling = prepared.submit.sampling();
  std::vector<std::pair<int32_t, float>> biases;
  for (const v1::TokenBias& bias : sampling.biases()) biases.emplace_back(bias.id(), bias.bias());
  EXPECT_THAT(biases, ElementsAre(std::pair(2, -INFINITY), std::pair(4, -INFINITY), std::pair(7, -INFINITY),
                                  std::pair(9, 1.5f)));
  EXPECT_EQ(sampling.presence_penalty(), 0.5f);
  EXPECT_EQ(sampling.frequency_penalty(), -0.5f);
  EXPECT_FALSE(sampling.log_probabilities());
}

TEST_F(PrepareTermsTest, BiasesOfUnknownTokensAreRefused) {
  request_.logit_bias = {{text_->size(), 1.0f}};
  EXPECT_EQ(Bad().param, "sampling.logit_bias." + std::to_string(text_->size()));
  request_.logit_bias.clear();
  request_.forbidden_ids = {1, -1};
  EXPECT_EQ(Bad().param, "sampling.forbidden_ids[1]");
}

TEST_F(PrepareTermsTest, LogProbabilitiesAreAskedForWithTheirPlaceInTheText) {
  request_.top_log_probabilities = 5;
  request_.input = std::string("é = 🚀");
  EXPECT_EQ(Good().prompt_characters, 5u);
  EXPECT_TRUE(Good().submit.sampling().log_probabilities());
  EXPECT_EQ(Good().submit.sampling().top_log_probabilities(), 5u);
  request_.input = Encoded("é = 🚀");
  EXPECT_EQ(Good().prompt_characters, 5u);
  request_.top_log_probabilities.reset();
  EXPECT_EQ(Good().prompt_characters, 0u);
}

TEST_F(PrepareTermsTest, ADefaultLengthGivesWayToTheModels) {
  request_.max_tokens_default = 12;
  EXPECT_EQ(Good().max_tokens, 12u);
  request_.max_tokens_default = 512;
  EXPECT_EQ(Good().max_tokens, 100 - Encoded("def f").size());
}

}  // namespace
}  // namespace quicksilver
