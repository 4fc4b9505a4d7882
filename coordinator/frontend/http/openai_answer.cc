#include "coordinator/frontend/http/openai_answer.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <utility>

#include "common/http/message.h"
#include "common/utf8.h"
#include "coordinator/frontend/http/openai_logprobs.h"

namespace quicksilver {
namespace {

using http::AppendJsonString;

// One a masked token in `diffusing` text: U+2591, a light shade.
constexpr std::string_view kMaskedToken = "\xE2\x96\x91";

constexpr size_t kChunkTextBytesMax = 64 * 1024;
constexpr size_t kChunkTokensMax = 256;  // With log-probabilities.

std::string_view Name(FinishReason reason) { return reason == FinishReason::kStop ? "stop" : "length"; }

std::string_view Name(SpanOp op) {
  switch (op) {
    case SpanOp::kReplace:
      return "replace";
    case SpanOp::kCommit:
      return "commit";
    case SpanOp::kFinal:
      break;
  }
  return "final";
}

// `"forwards":…,"tokens_per_forward":…`, and what happened to few.
std::string EndFields(const FinishedEvent& end) {
  char text[96];
  std::snprintf(text, sizeof(text), "\"forwards\":%u,\"tokens_per_forward\":%.6g", end.forwards,
                end.tokens_per_forward());
  std::string out = text;
  const auto add = [&out](const char* name, uint32_t count) {
    if (count > 0) out += std::string(",\"") + name + "\":" + std::to_string(count);
  };
  add("resumed", end.resumes);
  add("preempted", end.preemptions);
  add("paced_steps", end.paced_steps);
  if (end.deadline_reached) out += ",\"deadline_reached\":true";
  if (!end.policy.empty()) out.append(",\"policy\":\"").append(end.policy).append("\"");
  if (!end.cache.empty()) out.append(",\"cache\":\"").append(end.cache).append("\"");
  if (!end.cache.empty() && end.cache != "none") out += ",\"approximate\":true";
  return out;
}

}  // namespace

OpenAiAnswer::OpenAiAnswer(const OpenAiRequest& request, std::string id)
    : endpoint_(request.endpoint),
      id_(std::move(id)),
      echoes_(request.echoes),
      service_tier_(request.service_tier),
      stream_(request.stream),
      include_usage_(request.include_usage),
      diffusing_(request.diffusing),
      discards_text_(request.discards_text),
      names_service_tier_(request.names_service_tier),
      logprobs_(!request.generations.empty() && request.generations[0].top_log_probabilities.has_value()),
      choices_per_prompt_(request.choices()),
      choices_(request.generations.size() * request.choices()),
      prompt_characters_(request.generations.size()) {}

uint32_t OpenAiAnswer::Index(size_t prompt, uint32_t choice) const {
  return static_cast<uint32_t>(prompt) * choices_per_prompt_ + choice;
}

void OpenAiAnswer::BuildPrefix(const StartedEvent& event) {
  const std::string_view object = !chat() ? "text_completion" : stream_ ? "chat.completion.chunk" : "chat.completion";
  AppendJsonString("id", common_);
  common_ += ':';
  AppendJsonString(id_, common_);
  common_ += ",\"object\":";
  AppendJsonString(object, common_);
  common_ += ",\"created\":" + std::to_string(event.created) + ",\"model\":";
  AppendJsonString(event.model, common_);
  common_ += ",\"system_fingerprint\":";
  AppendJsonString(event.system_fingerprint, common_);
  if (chat() && (!stream_ || names_service_tier_)) common_ += ",\"service_tier\":\"" + service_tier_ + '"';
}

void OpenAiAnswer::OnStarted(size_t prompt, const StartedEvent& event) {
  if (common_.empty()) BuildPrefix(event);
  prompt_tokens_ += event.prompt_tokens;
  prompt_characters_[prompt] = event.prompt_characters;
  for (uint32_t i = 0; i < choices_per_prompt_; ++i) choices_[Index(prompt, i)].started = true;
}

void OpenAiAnswer::OnDelta(size_t prompt, const DeltaEvent& event) {
  Choice& choice = choices_[Index(prompt, event.choice)];
  if (!discards_text_) choice.unsent += event.text;
  choice.tokens.insert(choice.tokens.end(), event.tokens.begin(), event.tokens.end());
  choice.step = event.step;
  choice.block = event.block;
}

void OpenAiAnswer::OnFinished(size_t prompt, const FinishedEvent& event) {
  Choice& choice = choices_[Index(prompt, event.choice)];
  choice.finished = true;
  choice.end = event;
  if (discards_text_) {
    choice.end.completion_tokens = 0;
    choice.end.reason = FinishReason::kLength;
  }
}

bool OpenAiAnswer::complete() const {
  return std::all_of(choices_.begin(), choices_.end(), [](const Choice& choice) { return choice.finished; });
}

std::string OpenAiAnswer::first_finish_reason() const {
  return choices_.empty() || !choices_[0].finished ? "" : std::string(Name(choices_[0].end.reason));
}

std::string OpenAiAnswer::EchoOf(uint32_t index) const {
  return echoes_.empty() ? "" : echoes_[index / choices_per_prompt_];
}

// `delta`: the members of the choice that carry its text.
void OpenAiAnswer::AppendChunk(uint32_t index, std::string_view delta, std::string_view finish_reason,
                               const std::string& extension, std::string& out, std::string_view logprobs) const {
  out += "data: {";
  out += common_;
  out += ",\"choices\":[{\"index\":" + std::to_string(index) + ",";
  out += delta;
  out += ",\"logprobs\":";
  out += logprobs;
  out += ",\"finish_reason\":";
  if (finish_reason.empty()) {
    out += "null";
  } else {
    AppendJsonString(finish_reason, out);
  }
  out += "}]";
  if (include_usage_) out += ",\"usage\":null";
  out += extension;
  out += "}\n\n";
}

std::string OpenAiAnswer::Extension(const Choice& choice) const {
  return std::string(",\"quicksilver\":{") + (diffusing_ ? "\"mode\":\"replace\"," : "") +
         "\"step\":" + std::to_string(choice.step) + ",\"block\":" + std::to_string(choice.block) + "}";
}

void OpenAiAnswer::AppendOpening(uint32_t index, Choice& choice, std::string& out) {
  choice.opened = true;
  if (chat()) {
    return AppendChunk(index, R"("delta":{"role":"assistant","content":"","refusal":null})", "",
                       diffusing_ ? Extension(Choice()) : "", out);
  }
  if (echoes_.empty()) return;
  std::string text = "\"text\":";
  AppendJsonString(EchoOf(index), text);
  AppendChunk(index, text, "", "", out);
}

// Bytes of the next chunk's text, and its tokens. Far above what a block makes: only the text of a client that was slow
// for long is cut, at a character.
size_t OpenAiAnswer::NextText(const Choice& choice, size_t& tokens) const {
  const std::string& text = choice.unsent;
  tokens = WholeTokens(choice.tokens, kChunkTokensMax);
  if (tokens < choice.tokens.size()) {
    uint64_t characters = choice.tokens[tokens].offset - choice.tokens[0].offset;
    size_t size = 0;
    for (; size < text.size() && characters > 0; --characters)
      size += std::max<size_t>(1, Utf8CharacterLength(std::string_view(text).substr(size)));
    return size;
  }
  if (logprobs_ || diffusing_ || text.size() <= kChunkTextBytesMax) return text.size();
  size_t size = kChunkTextBytesMax;
  while ((text[size] & 0xC0) == 0x80 && size > kChunkTextBytesMax - 4) --size;
  return size;
}

std::string OpenAiAnswer::Logprobs(uint32_t index, const Choice& choice, size_t tokens) const {
  if (!logprobs_) return "null";
  return chat() ? ChatLogprobs(choice.tokens, tokens)
                : CompletionLogprobs(choice.tokens, tokens, prompt_characters_[index / choices_per_prompt_]);
}

void OpenAiAnswer::AppendText(uint32_t index, Choice& choice, std::string& out) {
  size_t tokens = 0;
  const size_t size = NextText(choice, tokens);
  std::string text = chat() ? "\"delta\":{\"content\":" : "\"text\":";
  AppendJsonString(std::string_view(choice.unsent).substr(0, size), text);
  if (chat()) text += '}';
  AppendChunk(index, text, "", Extension(choice), out, Logprobs(index, choice, tokens));
  choice.unsent.erase(0, size);
  choice.tokens.erase(choice.tokens.begin(), choice.tokens.begin() + static_cast<std::ptrdiff_t>(tokens));
}

void OpenAiAnswer::AppendFinish(uint32_t index, const Choice& choice, std::string& out) {
  const std::string extension = std::string(",\"quicksilver\":{") + (diffusing_ ? "\"mode\":\"replace\"," : "") +
                                "\"step\":" + std::to_string(choice.step) + "," + EndFields(choice.end) + "}";
  AppendChunk(index, chat() ? "\"delta\":{}" : "\"text\":\"\"", Name(choice.end.reason), extension, out);
}

std::string OpenAiAnswer::NextEvents() {
  std::string out;
  if (done_) return out;
  for (uint32_t index = 0; index < choices_.size(); ++index) {
    Choice& choice = choices_[index];
    if (!choice.started || choice.closed) continue;
    if (!choice.opened) AppendOpening(index, choice, out);
    // A diffusing client shows canvases until the final text replaces them.
    if (choice.waits() && !diffusing_) AppendText(index, choice, out);
    if (!choice.finished || (choice.waits() && !diffusing_)) continue;
    if (diffusing_) {
      if (!ShowsAll(choice)) AppendText(index, choice, out);
    } else if (!choice.frames.empty()) {
      AppendFrame(index, choice, out);
    }
    AppendFinish(index, choice, out);
    choice.closed = true;
  }
  if (!std::all_of(choices_.begin(), choices_.end(), [](const Choice& choice) { return choice.closed; })) return out;
  done_ = true;
  if (include_usage_) {
    out += "data: {" + common_ + ",\"choices\":[]";
    AppendUsage(out);
    out += Totals();
    out += "}\n\n";
  }
  out += "data: [DONE]\n\n";
  return out;
}

void OpenAiAnswer::OnFrame(size_t prompt, const FrameEvent& event) {
  choices_[Index(prompt, event.choice)].frames.Add(event);
}

std::string OpenAiAnswer::NextFrames() {
  std::string out;
  for (uint32_t index = 0; index < choices_.size(); ++index) {
    Choice& choice = choices_[index];
    if (choice.frames.empty() || !choice.opened || choice.finished) continue;
    if (diffusing_) {
      AppendCanvas(index, choice, out);
    } else {
      AppendFrame(index, choice, out);
    }
  }
  return out;
}

// The last canvas that was sent is the answer.
bool OpenAiAnswer::ShowsAll(const Choice& choice) const {
  return choice.shows_canvas && choice.frames.empty() &&
         choice.frames.canvas().Text(std::string(kMaskedToken)) == choice.unsent;
}

// The whole text as it stands, for the client to show in place of the one before.
void OpenAiAnswer::AppendCanvas(uint32_t index, Choice& choice, std::string& out) const {
  const FrameEvent frame = choice.frames.Take();
  choice.shows_canvas = true;
  std::string delta = "\"delta\":{\"content\":";
  AppendJsonString(choice.frames.canvas().Text(std::string(kMaskedToken)), delta);
  delta += '}';
  Choice shown;
  shown.step = frame.step;
  shown.block = frame.block;
  AppendChunk(index, delta, "", Extension(shown), out);
}

void OpenAiAnswer::AppendFrame(uint32_t index, Choice& choice, std::string& out) const {
  const FrameEvent frame = choice.frames.Take();
  std::string extension = ",\"quicksilver\":{\"frame\":{\"step\":" + std::to_string(frame.step) +
                          ",\"block\":" + std::to_string(frame.block) + ",\"epoch\":" + std::to_string(frame.epoch) +
                          ",\"committed\":" + std::to_string(frame.committed) +
                          ",\"extent\":" + std::to_string(frame.extent) + ",\"spans\":[";
  for (size_t i = 0; i < frame.spans.size(); ++i) {
    const FrameSpan& span = frame.spans[i];
    extension += i > 0 ? ",{\"op\":" : "{\"op\":";
    AppendJsonString(Name(span.op), extension);
    extension +=
        ",\"first\":" + std::to_string(span.first) + ",\"tokens\":" + std::to_string(span.tokens) + ",\"text\":";
    AppendJsonString(span.text, extension);
    extension += '}';
  }
  extension += "]}}";
  AppendChunk(index, chat() ? "\"delta\":{}" : "\"text\":\"\"", "", extension, out);
}

void OpenAiAnswer::AppendUsage(std::string& out) const {
  uint64_t completion_tokens = 0;
  for (const Choice& choice : choices_) completion_tokens += choice.end.completion_tokens;
  out += ",\"usage\":{\"prompt_tokens\":" + std::to_string(prompt_tokens_) +
         ",\"completion_tokens\":" + std::to_string(completion_tokens) +
         ",\"total_tokens\":" + std::to_string(prompt_tokens_ + completion_tokens) +
         ",\"prompt_tokens_details\":{\"cached_tokens\":" + std::to_string(CachedTokens()) +
         R"(},"completion_tokens_details":{"reasoning_tokens":0,)"
         R"("accepted_prediction_tokens":0,"rejected_prediction_tokens":0}})";
}

// A prompt counts once, with what its first choice found: the others also find what the first one left.
uint64_t OpenAiAnswer::CachedTokens() const {
  uint64_t tokens = 0;
  for (size_t i = 0; i < choices_.size(); i += choices_per_prompt_) tokens += choices_[i].end.cached_tokens;
  return tokens;
}

std::string OpenAiAnswer::Totals() const {
  FinishedEvent total;
  for (const Choice& choice : choices_) {
    total.completion_tokens += choice.end.completion_tokens;
    total.forwards += choice.end.forwards;
    total.resumes += choice.end.resumes;
    total.preemptions += choice.end.preemptions;
    total.paced_steps += choice.end.paced_steps;
    total.deadline_reached = total.deadline_reached || choice.end.deadline_reached;
    total.policy = choice.end.policy;  // Of one request: the same.
    total.cache = choice.end.cache;
  }
  return ",\"quicksilver\":{" + EndFields(total) + "}";
}

std::string OpenAiAnswer::Body() const {
  std::string out = "{" + common_;
  out += ",\"choices\":[";
  for (uint32_t index = 0; index < choices_.size(); ++index) {
    const Choice& choice = choices_[index];
    if (index > 0) out += ',';
    out += "{\"index\":" + std::to_string(index);
    out += chat() ? R"(,"message":{"role":"assistant","content":)" : ",\"text\":";
    AppendJsonString(EchoOf(index) + choice.unsent, out);
    if (chat()) out += ",\"refusal\":null}";
    out += ",\"logprobs\":" + Logprobs(index, choice, choice.tokens.size()) + ",\"finish_reason\":";
    AppendJsonString(Name(choice.end.reason), out);
    out += '}';
  }
  out += ']';
  AppendUsage(out);
  out += Totals();
  out += '}';
  return out;
}

std::string ErrorEvents(const ApiError& error) {
  return "data: " + http::ErrorResponse(error.http_status, error.type, error.code, error.message, error.param).body +
         "\n\ndata: [DONE]\n\n";
}

}  // namespace quicksilver
