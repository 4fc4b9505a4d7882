#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "coordinator/frontend/http/openai_request.h"

namespace quicksilver {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr OpenAiEndpoint kChat = OpenAiEndpoint::kChat;
constexpr OpenAiEndpoint kCompletions = OpenAiEndpoint::kCompletions;

// A valid request with `fields` in front ("\"n\":2,").
std::string Body(OpenAiEndpoint endpoint, const std::string& fields) {
  return "{" + (fields.empty() ? "" : fields + ",") +
         (endpoint == kChat ? R"("model":"m","messages":[{"role":"user","content":"hi"}]})"
                            : R"("model":"m","prompt":"hi"})");
}

OpenAiRequest Accepted(const std::string& body, OpenAiEndpoint endpoint = kChat, OpenAiLimits limits = {}) {
  const auto parsed = ParseOpenAiRequest(body, endpoint, limits);
  if (const ApiError* error = std::get_if<ApiError>(&parsed)) {
    ADD_FAILURE() << body.substr(0, 200) << "\n" << error->code << " " << error->param << ": " << error->message;
    return {};
  }
  return std::get<OpenAiRequest>(parsed);
}

OpenAiRequest AcceptedField(const std::string& fields, OpenAiEndpoint endpoint = kChat) {
  return Accepted(Body(endpoint, fields), endpoint);
}

ApiError Refused(const std::string& body, OpenAiEndpoint endpoint = kChat, OpenAiLimits limits = {}) {
  const auto parsed = ParseOpenAiRequest(body, endpoint, limits);
  if (const ApiError* error = std::get_if<ApiError>(&parsed)) return *error;
  ADD_FAILURE() << "accepted: " << body.substr(0, 200);
  return {};
}

struct Fault {
  std::string fields;  ///< Put before a valid body.
  int status;
  std::string code;
  std::string param;
};

void ExpectFaults(OpenAiEndpoint endpoint, const std::vector<Fault>& faults) {
  for (const Fault& fault : faults) {
    SCOPED_TRACE(fault.fields.substr(0, 200));
    const ApiError error = Refused(Body(endpoint, fault.fields), endpoint);
    EXPECT_EQ(error.http_status, fault.status);
    EXPECT_EQ(error.code, fault.code);
    EXPECT_EQ(error.param, fault.param);
    EXPECT_EQ(error.type, fault.status == 501 ? "server_error" : "invalid_request_error");
    EXPECT_EQ(error.should_not_retry, fault.status == 501);
    EXPECT_NE(error.message, "");
  }
}

std::vector<Fault> SamplingFaults() {
  return {
      {R"("temperature":-0.1)", 400, "invalid_value", "temperature"},
      {R"("temperature":2.1)", 400, "invalid_value", "temperature"},
      {R"("temperature":"1")", 400, "invalid_value", "temperature"},
      {R"("temperature":true)", 400, "invalid_value", "temperature"},
      {R"("top_p":0)", 400, "invalid_value", "top_p"},
      {R"("top_p":1.5)", 400, "invalid_value", "top_p"},
      {R"("n":0)", 400, "invalid_value", "n"},
      {R"("n":9)", 400, "invalid_value", "n"},
      {R"("n":128)", 400, "invalid_value", "n"},
      {R"("n":1.0)", 400, "invalid_value", "n"},
      {R"("n":"1")", 400, "invalid_value", "n"},
      {R"("seed":1.5)", 400, "invalid_value", "seed"},
      {R"("seed":9223372036854775808)", 400, "invalid_value", ""},
      {R"("stop":"")", 400, "invalid_value", "stop"},
      {R"("stop":["a",""])", 400, "invalid_value", "stop[1]"},
      {R"("stop":["a","b","c","d","e"])", 400, "invalid_value", "stop"},
      {R"("stop":[1])", 400, "invalid_value", "stop[0]"},
      {R"("stop":{})", 400, "invalid_value", "stop"},
      {R"("frequency_penalty":2.5)", 400, "invalid_value", "frequency_penalty"},
      {R"("presence_penalty":-2.5)", 400, "invalid_value", "presence_penalty"},
      {R"("logit_bias":{"a":1})", 400, "invalid_value", "logit_bias"},
      {R"("logit_bias":{"-1":1})", 400, "invalid_value", "logit_bias"},
      {R"("logit_bias":{"2147483648":1})", 400, "invalid_value", "logit_bias"},
      {R"("logit_bias":{"5":101})", 400, "invalid_value", "logit_bias.5"},
      {R"("logit_bias":{"5":"1"})", 400, "invalid_value", "logit_bias.5"},
      {R"("logit_bias":[])", 400, "invalid_value", "logit_bias"},
      {R"("stream":1)", 400, "invalid_value", "stream"},
      {R"("stream_options":{"include_usage":true})", 400, "invalid_value", "stream_options"},
      {R"("stream":true,"stream_options":{"include_usage":1})", 400, "invalid_value", "stream_options.include_usage"},
      {R"("stream":true,"stream_options":1)", 400, "invalid_value", "stream_options"},
      {R"("user":1)", 400, "invalid_value", "user"},
      {R"("metadata":{"a":1})", 400, "invalid_value", "metadata.a"},
      {R"("metadata":[])", 400, "invalid_value", "metadata"},
      {R"("store":"yes")", 400, "invalid_value", "store"},
      {R"("service_tier":"gold")", 400, "invalid_value", "service_tier"},
      {R"("quicksilver":{"canvases":true})", 400, "invalid_value", "quicksilver.canvases"},
  };
}

TEST(OpenAiRequestTest, FaultsOfSharedFieldsAreNamed) {
  ExpectFaults(kChat, SamplingFaults());
  ExpectFaults(kCompletions, SamplingFaults());
}

TEST(OpenAiRequestTest, FaultsOfChatFieldsAreNamed) {
  ExpectFaults(
      kChat,
      {
          {R"("max_tokens":0)", 400, "invalid_value", "max_tokens"},
          {R"("max_tokens":-1)", 400, "invalid_value", "max_tokens"},
          {R"("max_completion_tokens":0)", 400, "invalid_value", "max_completion_tokens"},
          {R"("max_tokens":5,"max_completion_tokens":6)", 400, "invalid_value", "max_tokens"},
          {R"("logprobs":1)", 400, "invalid_value", "logprobs"},
          {R"("top_logprobs":3)", 400, "invalid_value", "top_logprobs"},
          {R"("logprobs":true,"top_logprobs":21)", 400, "invalid_value", "top_logprobs"},
          {R"("response_format":{"type":"json_object"})", 501, "not_implemented", "response_format"},
          {R"("response_format":{"type":"json_schema","json_schema":{}})", 501, "not_implemented", "response_format"},
          {R"("response_format":{"type":"xml"})", 400, "invalid_value", "response_format.type"},
          {R"("response_format":{})", 400, "missing_required_parameter", "response_format.type"},
          {R"("tools":[{"type":"function","function":{"name":"f"}}])", 501, "not_implemented", "tools"},
          {R"("tools":[{"type":"custom"}])", 400, "invalid_value", "tools[0].type"},
          {R"("tools":[1])", 400, "invalid_value", "tools[0]"},
          {R"("tools":{})", 400, "invalid_value", "tools"},
          {R"("tool_choice":"required")", 501, "not_implemented", "tool_choice"},
          {R"("tool_choice":{"type":"function","function":{"name":"f"}})", 501, "not_implemented", "tool_choice"},
          {R"("tool_choice":{"type":"any"})", 400, "invalid_value", "tool_choice.type"},
          {R"("tool_choice":"any")", 400, "invalid_value", "tool_choice"},
          {R"("parallel_tool_calls":"no")", 400, "invalid_value", "parallel_tool_calls"},
          {R"("reasoning_effort":"huge")", 400, "invalid_value", "reasoning_effort"},
          {R"("verbosity":"loud")", 400, "invalid_value", "verbosity"},
          {R"("safety_identifier":")" + std::string(65, 'a') + "\"", 400, "invalid_value", "safety_identifier"},
          {R"("prediction":{"type":"guess"})", 400, "invalid_value", "prediction.type"},
          {R"("modalities":["audio"])", 400, "unsupported_parameter", "modalities"},
          {R"("audio":{})", 400, "unsupported_parameter", "audio"},
          {R"("web_search_options":{})", 400, "unsupported_parameter", "web_search_options"},
          {R"("moderation":{})", 400, "unsupported_parameter", "moderation"},
          {R"("functions":[])", 400, "unsupported_parameter", "functions"},
          {R"("function_call":"auto")", 400, "unsupported_parameter", "function_call"},
          {R"("diffusing":true)", 400, "invalid_value", "diffusing"},
          {R"("diffusing":true,"stream":true,"n":2)", 400, "invalid_value", "diffusing"},
          {R"("diffusing":true,"stream":true,"tools":[{"type":"function"}])", 400, "invalid_value", "diffusing"},
          {R"("diffusing":true,"stream":true,"logprobs":true)", 400, "invalid_value", "diffusing"},
          {R"("diffusing":1)", 400, "invalid_value", "diffusing"},
          {R"("realtime":1)", 400, "invalid_value", "realtime"},
      });
}

TEST(OpenAiRequestTest, FaultsOfCompletionFieldsAreNamed) {
  ExpectFaults(kCompletions, {
                                 {R"("suffix":5)", 400, "invalid_value", "suffix"},
                                 {R"("max_tokens":0)", 400, "invalid_value", "max_tokens"},
                                 {R"("max_tokens":-1)", 400, "invalid_value", "max_tokens"},
                                 {R"("best_of":2)", 400, "invalid_value", "best_of"},
                                 {R"("best_of":21,"n":8)", 400, "invalid_value", "best_of"},
                                 {R"("best_of":2,"n":2,"stream":true)", 400, "invalid_value", "best_of"},
                                 {R"("logprobs":0,"echo":true)", 501, "not_implemented", "echo"},
                                 {R"("logprobs":6)", 400, "invalid_value", "logprobs"},
                                 {R"("echo":1)", 400, "invalid_value", "echo"},
                                 {R"("diffusing":true)", 400, "unsupported_parameter", "diffusing"},
                             });
}

TEST(OpenAiRequestTest, FaultsOfMessagesAreNamed) {
  const std::vector<std::tuple<std::string, std::string, std::string>> faults = {
      {R"([])", "invalid_value", "messages"},
      {R"({})", "invalid_value", "messages"},
      {R"(["hi"])", "invalid_value", "messages[0]"},
      {R"([{"content":"hi"}])", "missing_required_parameter", "messages[0].role"},
      {R"([{"role":"robot","content":"hi"}])", "invalid_value", "messages[0].role"},
      {R"([{"role":"function","content":"hi","name":"f"}])", "invalid_value", "messages[0].role"},
      {R"([{"role":1,"content":"hi"}])", "invalid_value", "messages[0].role"},
      {R"([{"role":"user","content":"a"},{"role":"user"}])", "missing_required_parameter", "messages[1].content"},
      {R"([{"role":"user","content":null}])", "missing_required_parameter", "messages[0].content"},
      {R"([{"role":"assistant","content":null}])", "missing_required_parameter", "messages[0].content"},
      {R"([{"role":"user","content":5}])", "invalid_value", "messages[0].content"},
      {R"([{"role":"user","content":[]}])", "invalid_value", "messages[0].content"},
      {R"([{"role":"user","content":["a"]}])", "invalid_value", "messages[0].content[0]"},
      {R"([{"role":"user","content":[{"text":"a"}]}])", "missing_required_parameter", "messages[0].content[0].type"},
      {R"([{"role":"user","content":[{"type":"text"}]}])", "missing_required_parameter", "messages[0].content[0].text"},
      {R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{}}]}])",
       "unsupported_content_type", "messages[0].content[1].type"},
      {R"([{"role":"user","name":1,"content":"a"}])", "invalid_value", "messages[0].name"},
      {R"([{"role":"tool","content":"a"}])", "missing_required_parameter", "messages[0].tool_call_id"},
      {R"([{"role":"tool","content":"a","tool_call_id":"x"}])", "invalid_value", "messages[0].tool_call_id"},
      {R"([{"role":"assistant","content":null,"tool_calls":[{"id":"x"}]}])", "not_implemented",
       "messages[0].tool_calls"},
  };
  for (const auto& [messages, code, param] : faults) {
    SCOPED_TRACE(messages);
    const ApiError error = Refused(R"({"model":"m","messages":)" + messages + "}");
    EXPECT_EQ(error.code, code);
    EXPECT_EQ(error.param, param);
  }
  std::string many = R"({"model":"m","messages":[)";
  for (int i = 0; i < 2049; ++i) many += std::string(i == 0 ? "" : ",") + R"({"role":"user","content":"a"})";
  EXPECT_THAT(Refused(many + "]}").message, HasSubstr("at most 2048 items, got 2049"));
}

TEST(OpenAiRequestTest, FaultsOfPromptsAreNamed) {
  const std::vector<std::pair<std::string, std::string>> faults = {
      {R"([])", "prompt"},           {R"(5)", "prompt"},          {R"({})", "prompt"},
      {R"([[]])", "prompt[0]"},      {R"([-1])", "prompt"},       {R"([1.5])", "prompt"},
      {R"([1,"a"])", "prompt"},      {R"(["a",1])", "prompt[1]"}, {R"([[1],"a"])", "prompt[1]"},
      {R"([4294967296])", "prompt"}, {R"([null])", "prompt[0]"},
  };
  for (const auto& [prompt, param] : faults) {
    SCOPED_TRACE(prompt);
    const ApiError error = Refused(R"({"model":"m","prompt":)" + prompt + "}", kCompletions);
    EXPECT_EQ(error.code, "invalid_value");
    EXPECT_EQ(error.param, param);
  }
}

TEST(OpenAiRequestTest, StringsThatAreCopiedForEveryChoiceAreBounded) {
  const std::string stop(kStopBytesMax + 1, 's'), model(kModelBytesMax + 1, 'm');
  EXPECT_EQ(Refused(R"({"model":"m","prompt":"a","stop":["x",")" + stop + R"("]})", kCompletions).param, "stop[1]");
  EXPECT_EQ(Refused(R"({"prompt":"a","model":")" + model + R"("})", kCompletions).param, "model");
}

TEST(OpenAiRequestTest, TheBodyMustBeAnObjectWithModelAndMessages) {
  EXPECT_EQ(Refused("").code, "invalid_json");
  EXPECT_EQ(Refused("[]").code, "invalid_value");
  EXPECT_EQ(Refused("\xff").code, "invalid_utf8");
  EXPECT_EQ(Refused(R"({"a":1e999})").code, "invalid_value");
  EXPECT_EQ(Refused(R"({"messages":[{"role":"user","content":"a"}]})").param, "model");
  EXPECT_EQ(Refused(R"({"model":"m"})").param, "messages");
  EXPECT_EQ(Refused(R"({"model":null,"messages":[]})").code, "missing_required_parameter");
}

TEST(OpenAiRequestTest, MessagesBecomeChat) {
  const OpenAiRequest request =
      Accepted(R"({"model":"m","messages":[{"role":"developer","content":"d"},{"role":"system","content":"s"},)"
               R"({"role":"user","name":"n","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},)"
               R"({"role":"assistant","content":"","refusal":null,"tool_calls":null}]})");
  ASSERT_EQ(request.generations.size(), 1);
  const auto& messages = std::get<std::vector<ChatMessage>>(request.generations[0].input);
  ASSERT_EQ(messages.size(), 4);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].role, "system");
  EXPECT_EQ(messages[2].content, "a\nb");
  EXPECT_EQ(messages[2].name, "n");
  EXPECT_EQ(messages[3].role, "assistant");
  EXPECT_EQ(messages[3].content, "");
  EXPECT_EQ(request.generations[0].model, "m");
}

TEST(OpenAiRequestTest, SamplingFieldsArriveAsGiven) {
  const OpenAiRequest request = AcceptedField(
      R"("temperature":0,"top_p":0.5,"n":3,"seed":-7,"stop":["a","b"],"max_completion_tokens":12,"stream":true,)"
      R"("stream_options":{"include_usage":true,"include_obfuscation":false})");
  const GenerateRequest& generation = request.generations[0];
  EXPECT_EQ(generation.temperature, 0.0f);
  EXPECT_EQ(generation.top_p, 0.5f);
  EXPECT_EQ(generation.choices, 3);
  EXPECT_EQ(generation.seed, -7);
  EXPECT_THAT(generation.stop, ElementsAre("a", "b"));
  EXPECT_EQ(generation.max_tokens, 12);
  EXPECT_TRUE(request.stream);
  EXPECT_TRUE(request.include_usage);
}

TEST(OpenAiRequestTest, WhatIsNotGivenIsLeftToTheModel) {
  for (const char* fields :
       {"", R"("temperature":null,"top_p":null,"n":null,"seed":null,"stop":null,"max_tokens":null,)"
            R"("stream":null,"stream_options":null,"logit_bias":null,"quicksilver":null)"}) {
    const OpenAiRequest request = AcceptedField(fields);
    const GenerateRequest& generation = request.generations[0];
    EXPECT_EQ(generation.temperature, std::nullopt);
    EXPECT_EQ(generation.top_p, std::nullopt);
    EXPECT_EQ(generation.choices, 1);
    EXPECT_EQ(generation.seed, std::nullopt);
    EXPECT_TRUE(generation.stop.empty());
    EXPECT_EQ(generation.max_tokens, std::nullopt);
    EXPECT_EQ(generation.top_k, 0);
    EXPECT_EQ(generation.decoding, DecodingChoice());
    EXPECT_EQ(generation.top_log_probabilities, std::nullopt);
    EXPECT_FALSE(request.stream || request.include_usage || request.canvases || request.diffusing);
  }
  EXPECT_EQ(AcceptedField("", kCompletions).generations[0].max_tokens, 16);
}

TEST(OpenAiRequestTest, EdgesOfTheRangesAreAccepted) {
  for (const char* fields : {R"("temperature":2)",
                             R"("top_p":1)",
                             R"("top_p":1e-9)",
                             R"("n":8)",
                             R"("stop":[])",
                             R"("stop":"x")",
                             R"("stop":["a","b","c","d"])",
                             R"("seed":-9223372036854775808)",
                             R"("max_tokens":1)",
                             R"("max_tokens":5,"max_completion_tokens":5)",
                             R"("max_tokens":9223372036854775807)",
                             R"("frequency_penalty":0,"presence_penalty":0.0)",
                             R"("logit_bias":{})",
                             R"("logprobs":false)",
                             R"("response_format":{"type":"text"})",
                             R"("tools":[])",
                             R"("tool_choice":"none")",
                             R"("tool_choice":"auto")",
                             R"("parallel_tool_calls":false)",
                             R"("reasoning_effort":"instant","realtime":true,"verbosity":"low")",
                             R"("modalities":["text"])",
                             R"("store":true,"user":"u","metadata":{"a":"b"},"service_tier":"auto")",
                             R"("prediction":{"type":"content","content":"x"})",
                             R"("diffusing":false)",
                             R"("unknown_field":{"a":[1]})",
                             R"("stream":true,"diffusing":true)",
                             R"("quicksilver":{})"}) {
    AcceptedField(fields);
  }
  EXPECT_EQ(AcceptedField(R"("max_tokens":9223372036854775807)").generations[0].max_tokens, UINT32_MAX);
}

TEST(OpenAiRequestTest, ServiceTiersArePriorities) {
  const auto priority = [](const std::string& fields) { return AcceptedField(fields).generations[0].priority; };
  EXPECT_EQ(priority(""), Priority::kDefault);
  for (const char* tier : {"auto", "default", "scale"}) {
    EXPECT_EQ(priority(std::string("\"service_tier\":\"") + tier + "\""), Priority::kDefault) << tier;
  }
  EXPECT_EQ(priority(R"("service_tier":"priority")"), Priority::kInteractive);
  EXPECT_EQ(priority(R"("service_tier":"fast")"), Priority::kInteractive);
  EXPECT_EQ(priority(R"("service_tier":"flex")"), Priority::kBatch);
  EXPECT_EQ(priority(R"("realtime":true)"), Priority::kInteractive);
  EXPECT_EQ(AcceptedField(R"("realtime":true)", kCompletions).generations[0].priority, Priority::kInteractive);
  EXPECT_EQ(AcceptedField(R"("service_tier":"fast")").service_tier, "priority");
  EXPECT_EQ(AcceptedField(R"("service_tier":"flex")").service_tier, "default");
  EXPECT_FALSE(AcceptedField("").names_service_tier);
}

TEST(OpenAiRequestTest, CacheKeysAndLatencyTargetsArriveAsGiven) {
  EXPECT_EQ(AcceptedField(R"("prompt_cache_key":"k")").generations[0].cache_key, "k");
  EXPECT_EQ(AcceptedField(R"("quicksilver":{"latency_target_ms":1})").generations[0].latency_target_seconds, 0.001);
  EXPECT_EQ(AcceptedField(R"("quicksilver":{"latency_target_ms":600000})").generations[0].latency_target_seconds, 600);
  EXPECT_EQ(AcceptedField("").generations[0].latency_target_seconds, 0);
  const std::string target = "quicksilver.latency_target_ms";
  ExpectFaults(kChat,
               {{R"("prompt_cache_key":")" + std::string(257, 'k') + "\"", 400, "invalid_value", "prompt_cache_key"},
                {R"("prompt_cache_key":7)", 400, "invalid_value", "prompt_cache_key"},
                {R"("quicksilver":{"latency_target_ms":0})", 400, "invalid_value", target},
                {R"("quicksilver":{"latency_target_ms":600001})", 400, "invalid_value", target},
                {R"("quicksilver":{"latency_target_ms":1.5})", 400, "invalid_value", target},
                {R"("realtime":1,"service_tier":"fast")", 400, "invalid_value", "realtime"}});
}

TEST(OpenAiRequestTest, EveryFormOfPromptIsAGenerationOfItsOwn) {
  using Ids = std::vector<int32_t>;
  const auto prompts = [](const std::string& prompt) {
    return Accepted(R"({"model":"m","n":2,"prompt":)" + prompt + "}", kCompletions).generations;
  };
  EXPECT_EQ(std::get<std::string>(prompts(R"("a")")[0].input), "a");
  EXPECT_EQ(prompts(R"(["a","b"])").size(), 2);
  EXPECT_EQ(std::get<std::string>(prompts(R"(["a","b"])")[1].input), "b");
  EXPECT_EQ(std::get<Ids>(prompts("[1,2]")[0].input), (Ids{1, 2}));
  EXPECT_EQ(std::get<Ids>(prompts("[[1],[2,3]]")[1].input), (Ids{2, 3}));
  EXPECT_EQ(prompts("[[1],[2,3]]")[1].choices, 2);
  std::string many = "[\"a\"";
  for (int i = 1; i < 65; ++i) many += ",\"a\"";
  const ApiError error = Refused(R"({"model":"m","n":2,"prompt":)" + many + "]}", kCompletions);
  EXPECT_EQ(error.param, "n");
  EXPECT_THAT(error.message, HasSubstr("128 choices are allowed over all prompts, got 130"));
}

TEST(OpenAiRequestTest, EchoKeepsThePrompt) {
  const OpenAiRequest request = AcceptedField(R"("echo":true,"max_tokens":0)", kCompletions);
  EXPECT_THAT(request.echoes, ElementsAre("hi"));
  EXPECT_TRUE(request.discards_text);
  EXPECT_EQ(request.generations[0].max_tokens, 1);
  EXPECT_EQ(Refused(R"({"model":"m","echo":true,"prompt":[1]})", kCompletions).http_status, 501);
}

TEST(OpenAiRequestTest, StrictParametersRefuseUnknownFields) {
  const std::string body = Body(kChat, R"("frobnicate":1,"user":"u")");
  Accepted(body);
  const ApiError error = Refused(body, kChat, {.strict_params = true});
  EXPECT_EQ(error.code, "unknown_parameter");
  EXPECT_EQ(error.param, "frobnicate");
  Accepted(Body(kChat, R"("user":"u","tools":[],"diffusing":false,"realtime":false)"), kChat, {.strict_params = true});
}

TEST(OpenAiRequestTest, MessagesNameBothValues) {
  EXPECT_THAT(Refused(Body(kChat, R"("temperature":3)")).message, HasSubstr("from 0 to 2, got 3"));
  EXPECT_THAT(Refused(Body(kChat, R"("n":9)")).message, HasSubstr("from 1 to 8, got 9"));
  EXPECT_THAT(Refused(Body(kChat, R"("max_tokens":5,"max_completion_tokens":6)")).message, HasSubstr("it is 5"));
}

}  // namespace
}  // namespace quicksilver
