#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <variant>

#include "coordinator/frontend/http/openai_extension.h"

namespace quicksilver {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::variant<OpenAiRequest, ApiError> Parse(const json& fields, OpenAiEndpoint endpoint) {
  json body = {{"model", "m"}};
  if (endpoint == OpenAiEndpoint::kChat) {
    body["messages"] = {{{"role", "user"}, {"content", "hi"}}};
  } else {
    body["prompt"] = "hi";
  }
  body.update(fields);
  return ParseOpenAiRequest(body.dump(), endpoint, {});
}

GenerateRequest Accepted(const json& fields, OpenAiEndpoint endpoint = OpenAiEndpoint::kChat) {
  const auto parsed = Parse(fields, endpoint);
  if (const auto* error = std::get_if<ApiError>(&parsed)) {
    ADD_FAILURE() << fields << ": " << error->message;
    return {};
  }
  return std::get<OpenAiRequest>(parsed).generations.at(0);
}

ApiError Refused(const json& fields, OpenAiEndpoint endpoint = OpenAiEndpoint::kChat) {
  const auto parsed = Parse(fields, endpoint);
  if (const auto* error = std::get_if<ApiError>(&parsed)) return *error;
  ADD_FAILURE() << "accepted: " << fields;
  return {};
}

json Extension(std::string_view name, const json& value) { return {{"quicksilver", {{std::string(name), value}}}}; }

TEST(ExtensionTest, EveryFieldOfTheContractArrivesAndIsHeldToItsBounds) {
  for (size_t i = 0; i < kDecodingFieldCount; ++i) {
    const DecodingField& field = kDecodingFields[i];
    SCOPED_TRACE(std::string(field.name));
    const auto expect_refused = [&](const json& value, const std::string& told) {
      const ApiError error = Refused(Extension(field.name, value));
      EXPECT_EQ(error.http_status, 400);
      EXPECT_EQ(error.code, "invalid_value");
      EXPECT_EQ(error.param, "quicksilver." + std::string(field.name));
      EXPECT_THAT(error.message, HasSubstr(told));
    };
    const auto arrived = [&](const json& value) {
      return Accepted(Extension(field.name, value)).decoding.Get(DecodingIndex(i));
    };
    expect_refused(json::array(), "got an array");
    switch (field.kind) {
      case DecodingKind::kName:
        for (size_t n = 0; n < field.names.size(); ++n) EXPECT_EQ(arrived(std::string(field.names[n])), n + 1.0);
        expect_refused("none of them", "'none of them'");
        break;
      case DecodingKind::kFlag:
        EXPECT_EQ(arrived(true), 1.0);
        EXPECT_EQ(arrived(false), std::nullopt);
        expect_refused(1, "got an integer");
        break;
      case DecodingKind::kCount:
        EXPECT_EQ(arrived(static_cast<int64_t>(field.min)), field.min);
        EXPECT_EQ(arrived(static_cast<int64_t>(field.max)), field.max);
        expect_refused(static_cast<int64_t>(field.min) - 1,
                       "got " + std::to_string(static_cast<int64_t>(field.min) - 1));
        expect_refused(static_cast<int64_t>(field.max) + 1, "to " + std::to_string(static_cast<int64_t>(field.max)));
        expect_refused(1.5, "got a fraction");
        break;
      case DecodingKind::kNumber: {
        const auto [min, max] = BoundsOf(DecodingIndex(i), {});
        EXPECT_EQ(arrived(min), min);
        EXPECT_EQ(arrived(max), max);
        expect_refused(min - 0.5, "got -0.5");
        expect_refused(max + 1, "expected a number from 0 to ");
        break;
      }
    }
  }
}

TEST(ExtensionTest, ThresholdsOfEntropiesAreInNats) {
  EXPECT_EQ(Accepted({{"quicksilver", {{"policy", "multi_block"}, {"threshold", 3.5}}}}).decoding.Get("threshold"),
            3.5);
  EXPECT_EQ(Accepted({{"quicksilver", {{"confidence", "entropy"}, {"threshold", -2}}}}).decoding.Get("threshold"), -2);
  EXPECT_EQ(Accepted(Extension("threshold", 3.5)).decoding.Get("threshold"), 3.5) << "the model's policy decides";
  EXPECT_THAT(Refused({{"quicksilver", {{"policy", "threshold"}, {"threshold", 3.5}}}}).message,
              AllOf(HasSubstr("quicksilver.threshold"), HasSubstr("from 0 to 1, got 3.5")));
}

TEST(ExtensionTest, TheThresholdHasASecondName) {
  EXPECT_EQ(Accepted(Extension("confidence_threshold", 0.5)).decoding.Get("threshold"), 0.5);
  EXPECT_EQ(Refused(Extension("confidence_threshold", 20.5)).param, "quicksilver.confidence_threshold");
  EXPECT_EQ(Accepted({{"quicksilver", {{"threshold", 0.5}, {"confidence_threshold", 0.5}}}}).decoding.Get("threshold"),
            0.5);
  EXPECT_EQ(Refused({{"quicksilver", {{"threshold", 0.5}, {"confidence_threshold", 0.6}}}}).param,
            "quicksilver.threshold");
}

TEST(ExtensionTest, UnknownKeysAreNamed) {
  const ApiError error = Refused(Extension("stepz", 3));
  EXPECT_EQ(error.code, "unknown_parameter");
  EXPECT_EQ(error.param, "quicksilver.stepz");
  EXPECT_EQ(Refused({{"quicksilver", 3}}).param, "quicksilver");
  EXPECT_EQ(Refused(Extension("top_k", 257)).param, "quicksilver.top_k");
}

TEST(ExtensionTest, GivenTokensArriveAsGiven) {
  const GenerateRequest request =
      Accepted({{"quicksilver", {{"fixed_ids", {5, -1, 7}}, {"draft", {-1, 2}}, {"forbidden_ids", {9}}}}});
  EXPECT_THAT(request.infill.fixed_ids, ElementsAre(5, -1, 7));
  EXPECT_THAT(std::get<std::vector<int32_t>>(request.infill.draft), ElementsAre(-1, 2));
  EXPECT_THAT(request.forbidden_ids, ElementsAre(9));
  EXPECT_EQ(std::get<std::string>(Accepted(Extension("draft", "def f")).infill.draft), "def f");
  EXPECT_EQ(Refused(Extension("draft", 5)).param, "quicksilver.draft");
  EXPECT_EQ(Refused(Extension("fixed_ids", {-2})).param, "quicksilver.fixed_ids");
  EXPECT_EQ(Refused(Extension("fixed_ids", "x")).param, "quicksilver.fixed_ids");
  EXPECT_EQ(Refused(Extension("forbidden_ids", {-1})).param, "quicksilver.forbidden_ids");
  EXPECT_THAT(Accepted(Extension("forbidden_ids", nlohmann::json::array())).forbidden_ids, IsEmpty());
  EXPECT_THAT(Refused(Extension("forbidden_ids", std::vector<int>(1025, 1))).message,
              HasSubstr("at most 1024 items, got 1025"));
}

TEST(ExtensionTest, BiasesAndPenaltiesArriveAsGiven) {
  const GenerateRequest request =
      Accepted({{"logit_bias", {{"5", -100}, {"17", 2.5}}}, {"presence_penalty", -2}, {"frequency_penalty", 0.5}});
  EXPECT_EQ(request.logit_bias, (std::map<int32_t, float>{{5, -100.0f}, {17, 2.5f}}));
  EXPECT_EQ(request.presence_penalty, -2.0f);
  EXPECT_EQ(request.frequency_penalty, 0.5f);
  json many = json::object();
  for (int id = 0; id < 1025; ++id) many[std::to_string(id)] = 1;
  EXPECT_THAT(Refused({{"logit_bias", many}}).message, HasSubstr("at most 1024 entries, got 1025"));
}

TEST(ExtensionTest, LogProbabilitiesAreAskedForInTwoWays) {
  EXPECT_EQ(Accepted({{"logprobs", true}}).top_log_probabilities, 0u);
  EXPECT_EQ(Accepted({{"logprobs", true}, {"top_logprobs", 20}}).top_log_probabilities, 20u);
  EXPECT_EQ(Accepted({{"logprobs", false}}).top_log_probabilities, std::nullopt);
  EXPECT_EQ(Accepted({{"logprobs", 0}}, OpenAiEndpoint::kCompletions).top_log_probabilities, 0u);
  EXPECT_EQ(Accepted({{"logprobs", 5}}, OpenAiEndpoint::kCompletions).top_log_probabilities, 5u);
}

TEST(ExtensionTest, FillInTheMiddleHasDefaultsAndRangesOfItsOwn) {
  constexpr OpenAiEndpoint kFim = OpenAiEndpoint::kFim;
  const GenerateRequest request = Accepted({{"suffix", "tail"}}, kFim);
  EXPECT_EQ(std::get<std::string>(request.input), "hi");
  EXPECT_EQ(std::get<std::string>(request.infill.suffix), "tail");
  EXPECT_EQ(request.max_tokens, std::nullopt);
  EXPECT_EQ(request.max_tokens_default, 512u);
  EXPECT_EQ(request.temperature, 0.0f);
  EXPECT_EQ(request.top_p, 1.0f);
  EXPECT_EQ(request.presence_penalty, 1.5f);
  EXPECT_EQ(Accepted({{"presence_penalty", 0}, {"max_tokens", 8192}}, kFim).presence_penalty, 0.0f);
  EXPECT_EQ(Refused({{"temperature", 1.5}}, kFim).param, "temperature");
  EXPECT_EQ(Refused({{"max_tokens", 8193}}, kFim).param, "max_tokens");
  EXPECT_EQ(Refused({{"suffix", 1}}, kFim).param, "suffix");
  EXPECT_EQ(Refused({{"prompt", nullptr}}, kFim).param, "prompt");
}

TEST(ExtensionTest, AnEmptySuffixIsNone) {
  for (const json& suffix : {json(""), json(nullptr)}) {
    EXPECT_EQ(Accepted({{"suffix", suffix}}, OpenAiEndpoint::kCompletions).infill.suffix.index(), 0u);
  }
}

TEST(ExtensionTest, ErrorsOfTheServiceAreToldInTheNamesOfThisApi) {
  const auto told = [](const std::string& param, const std::string& message) {
    const ApiError error = InHttpTerms(InvalidRequest("invalid_value", param, message));
    return error.param + " | " + error.message;
  };
  EXPECT_EQ(told("decoding.steps", "decoding.steps (9) must be in [1, 8]"),
            "quicksilver.steps | quicksilver.steps (9) must be in [1, 8]");
  EXPECT_EQ(told("sampling.logit_bias.7", "sampling.logit_bias.7: no"), "logit_bias.7 | logit_bias.7: no");
  EXPECT_EQ(told("sampling.biases", "x"), "logit_bias | x");
  EXPECT_EQ(told("sampling.forbidden_ids[1]", "x"), "quicksilver.forbidden_ids[1] | x");
  EXPECT_EQ(told("infill.suffix", "infill.suffix is"), "suffix | suffix is");
  EXPECT_EQ(told("infill.suffix_ids[2]", "x"), "suffix[2] | x");
  EXPECT_EQ(told("infill.draft_ids", "infill.draft_ids has"), "quicksilver.draft | quicksilver.draft has");
  EXPECT_EQ(told("infill.fixed_ids[0]", "x"), "quicksilver.fixed_ids[0] | x");
  EXPECT_EQ(told("prompt", "the prompt"), "prompt | the prompt");
}

}  // namespace
}  // namespace quicksilver
