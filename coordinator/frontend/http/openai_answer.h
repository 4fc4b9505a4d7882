#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/core/generate.h"
#include "coordinator/frontend/client_canvas.h"
#include "coordinator/frontend/http/openai_request.h"

namespace quicksilver {

/// Turns the events of a request's generations into the bytes of its answer (serving.md §1.4–1.6, §1.12, §2.3): one
/// JSON body, or server-sent events. Events are collected; NextEvents() says what may be sent by now, so that a client
/// that was too slow for a while gets its text in fewer, larger pieces. Pure.
class OpenAiAnswer {
 public:
  /// `id`: chatcmpl-… or cmpl-….
  OpenAiAnswer(const OpenAiRequest& request, std::string id);

  /// `prompt`: the index of the generation.
  void OnStarted(size_t prompt, const StartedEvent& event);
  void OnDelta(size_t prompt, const DeltaEvent& event);
  void OnFrame(size_t prompt, const FrameEvent& event);
  void OnFinished(size_t prompt, const FinishedEvent& event);

  /// Every choice has finished.
  bool complete() const;
  /// Events to send now, joined; empty when there are no more. After complete() the last ones are the usage chunk, if
  /// wanted, and [DONE].
  std::string NextEvents();
  /// NextEvents() has returned [DONE].
  bool exhausted() const { return done_; }
  /// Chunks with the frames that wait, those of a choice joined, or with canvases when diffusing. What is final does
  /// not wait for them: NextEvents() has it.
  std::string NextFrames();
  /// Which choice of the answer `choice` of `prompt` is.
  uint32_t Index(size_t prompt, uint32_t choice) const;
  /// The body of an answer that is not streamed. Requires complete().
  std::string Body() const;
  /// Of the first choice, for metrics; empty before it finished.
  std::string first_finish_reason() const;

 private:
  struct Choice {
    std::string unsent;                ///< Streamed: text to send. Else, and when diffusing: all of it.
    std::vector<WrittenToken> tokens;  ///< Those of `unsent`, when log-probabilities are wanted.
    uint32_t step = 0, block = 0;
    bool opened = false;  ///< The role or echo chunk has been sent.
    bool started = false, finished = false, closed = false;
    FinishedEvent end;
    FrameQueue frames;
    bool shows_canvas = false;  ///< Diffusing: one has been sent.

    bool waits() const { return !unsent.empty() || !tokens.empty(); }
  };

  void BuildPrefix(const StartedEvent& event);
  void AppendOpening(uint32_t index, Choice& choice, std::string& out);
  void AppendText(uint32_t index, Choice& choice, std::string& out);
  void AppendFinish(uint32_t index, const Choice& choice, std::string& out);
  void AppendChunk(uint32_t index, std::string_view delta, std::string_view finish_reason, const std::string& extension,
                   std::string& out, std::string_view logprobs = "null") const;
  size_t NextText(const Choice& choice, size_t& tokens) const;
  std::string Logprobs(uint32_t index, const Choice& choice, size_t tokens) const;
  void AppendUsage(std::string& out) const;
  std::string Extension(const Choice& choice) const;
  std::string Totals() const;
  uint64_t CachedTokens() const;
  std::string EchoOf(uint32_t index) const;
  void AppendFrame(uint32_t index, Choice& choice, std::string& out) const;
  bool ShowsAll(const Choice& choice) const;
  void AppendCanvas(uint32_t index, Choice& choice, std::string& out) const;
  bool chat() const { return endpoint_ == OpenAiEndpoint::kChat; }

  const OpenAiEndpoint endpoint_;
  const std::string id_;
  const std::vector<std::string> echoes_;
  const std::string service_tier_;
  const bool stream_, include_usage_, diffusing_, discards_text_, names_service_tier_, logprobs_;
  const uint32_t choices_per_prompt_;
  std::vector<Choice> choices_;
  std::vector<uint64_t> prompt_characters_;  // Of each prompt.
  std::string common_;                       ///< "id" to "system_fingerprint" of every chunk and body.
  uint64_t prompt_tokens_ = 0;
  bool done_ = false;
};

/// A failure behind the head of a stream: an error event and [DONE].
std::string ErrorEvents(const ApiError& error);

}  // namespace quicksilver
