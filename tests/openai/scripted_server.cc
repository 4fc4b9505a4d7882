// Serves the OpenAI routes with scripted generations on a free loopback port, prints "port N", ends with its stdin.
// What it plays depends on the last message; see ScriptFor.
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "common/exit_codes.h"
#include "common/http/server.h"
#include "common/mutex.h"
#include "coordinator/frontend/http/openai_frontend.h"
#include "tests/openai/scripted_inference.h"

namespace quicksilver {
namespace {

class IgnoringObserver : public OpenAiObserver {
 public:
  void OnRequest(const std::string&, int, const std::string&) override {}
  void OnClientGone() override {}
  void OnSlowClient() override {}
  void OnSdkRetry() override {}
};

// In pieces as a model would make them; tests/openai/sdk_test.py knows the whole.
const char* const kHostilePieces[] = {"line\nbreak\r\n",   "lone\rreturn ",    "data: [DONE]\n\n",      "\xE2\x80\xA8",
                                      "</script>",         "\"\\u0041\\\" ",   "\xF0\x9F\x91\xA9",      "\xE2\x80\x8D",
                                      "\xF0\x9F\x91\xA7 ", "\xD9\x85\xD8\xB1", ": comment\nevent: x\n", "\x01\x7f"};

Script HostileScript() {
  Script script = {Started()};
  for (const char* piece : kHostilePieces) script.emplace_back(Delta(piece));
  script.emplace_back(Finished(12));
  return script;
}

// Three states of a canvas of four tokens, slower than the least time between two of them.
Script CanvasScript() {
  const absl::Duration pause = absl::Milliseconds(80);
  return {Started(),
          FrameEvent{0, 1, 0, 1, 0, 4, {{SpanOp::kReplace, 0, 0, ""}}},
          pause,
          FrameEvent{0, 2, 0, 1, 0, 4, {{SpanOp::kCommit, 0, 1, "ab"}}},
          pause,
          DeltaEvent{0, "ab", 0, 3},
          FrameEvent{0, 3, 0, 1, 1, 4, {{SpanOp::kFinal, 0, 1, "ab"}, {SpanOp::kCommit, 1, 3, "cd"}}},
          pause,
          DeltaEvent{0, "cdef", 0, 4},
          FrameEvent{0, 4, 0, 1, 4, 4, {{SpanOp::kFinal, 1, 3, "cdef"}}},
          Finished(4)};
}

// Tells in its text which class it was put into, and in its end what happened on the way.
Script TermsScript(const GenerateRequest& request) {
  const char* names[] = {"interactive", "default", "batch"};
  FinishedEvent end = Finished(1);
  end.cached_tokens = 5;
  end.resumes = 1;
  end.deadline_reached = request.latency_target_seconds > 0;
  return {Started(), Delta(names[static_cast<int>(request.priority)] + (" " + request.cache_key)), end};
}

Script LimitedScript() {
  ApiError error = RateLimited("60 requests a minute are allowed.", 7);
  error.rates.requests = RateStatus{60, 0, absl::Seconds(7)};
  return {error};
}

// "Hi é" in four tokens, the last two of which are halves of a character; as many alternatives as were asked for.
Script LogprobsScript(const GenerateRequest& request) {
  const char* tokens[] = {"Hi", " ", "\xC3", "\xA9"};
  DeltaEvent first = Delta("Hi "), second = Delta("\xC3\xA9");
  for (int i = 0; i < 4; ++i) {
    WrittenToken token{.token = {i, tokens[i], -0.5f * static_cast<float>(i)},
                       .offset = i == 0 ? 0 : std::min<uint64_t>(static_cast<uint64_t>(i) + 1, 3)};
    for (uint32_t top = 0; top < request.top_log_probabilities.value_or(0); ++top) {
      token.top.push_back({static_cast<int32_t>(top), std::string(1, static_cast<char>('a' + top)), -9999.0f});
    }
    (i < 2 ? first : second).tokens.push_back(token);
  }
  StartedEvent started = Started();
  started.prompt_characters = 8;
  FinishedEvent finished = Finished(4);
  finished.policy = "token_edit";
  finished.cache = "dual";
  return {started, first, absl::Milliseconds(20), second, finished};
}

// Its first two attempts find the server full.
Script FlakyScript(const std::string& text) {
  static Mutex mutex;
  static std::map<std::string, int> attempts;
  MutexLock lock(mutex);
  if (++attempts[text] <= 2) return {Overloaded("The queue is full.", 1)};
  return {Started(), Delta("attempt " + std::to_string(attempts[text])), Finished()};
}

Script ScriptFor(const GenerateRequest& request) {
  const std::string text = LastText(request);
  if (text == "hostile") return HostileScript();
  if (text == "canvas") return CanvasScript();
  if (text == "fails midway") return {Started(), Delta("Hel"), absl::Milliseconds(50), Delta("lo"), WorkerLost()};
  if (text == "terms") return TermsScript(request);
  if (text == "logprobs") return LogprobsScript(request);
  if (text == "refused") return {InvalidRequest("invalid_value", "decoding.steps", "decoding.steps (9) must be 1.")};
  if (text == "limited") return LimitedScript();
  if (text == "no worker") return {NoReadyWorker("No group is ready.")};
  if (text == "too long") return {InvalidRequest("context_length_exceeded", "messages", "5000 of 4096 tokens.")};
  if (text.rfind("flaky", 0) == 0) return FlakyScript(text);
  if (request.model != "m") return {ModelNotFound(request.model)};
  Script script = {Started()};
  for (uint32_t choice = 0; choice < request.choices; ++choice) {
    script.emplace_back(Delta("Hello, ", choice, 1));
    script.emplace_back(absl::Milliseconds(5));
    script.emplace_back(Delta(text + "!", choice, 2));
    script.emplace_back(Finished(3, choice, text == "long" ? FinishReason::kLength : FinishReason::kStop));
  }
  return script;
}

int Run() {
  ScriptedInference inference(ScriptFor);
  IgnoringObserver observer;
  OpenAiFrontend frontend(inference, {.version = "test"}, observer);
  http::ServerOptions options;
  frontend.Configure(options);
  http::Server server(options);
  frontend.Register(server);
  if (const absl::Status status = server.Start(); !status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return kExitBind;
  }
  std::printf("port %d\n", server.port());
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  server.Stop(absl::Seconds(1));
  return kExitOk;
}

}  // namespace
}  // namespace quicksilver

int main() { return quicksilver::Run(); }
