#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "coordinator/core/api_error.h"

namespace quicksilver {

struct ChatMessage {
  std::string role;  ///< system, user, assistant or tool; `developer` has become `system`.
  std::string content;
  std::string name;
};

enum class PolicyChoice { kDefault, kStatic, kDynamic, kSequential, kThreshold };

/// How the canvas is to be filled; unset fields take the model's defaults (the worker's decoding/ resolves them).
struct DecodingChoice {
  PolicyChoice policy = PolicyChoice::kDefault;
  std::optional<uint32_t> block_length;
  std::optional<uint32_t> steps;
  std::optional<float> threshold;  ///< [0, 1]
  bool random_remasking = false;
  std::optional<float> guidance_scale;  ///< >= 0
  bool suppress_eos = false;
  bool distrust_eos = false;
};

/// Bounds of strings that are copied for every prompt and choice.
inline constexpr size_t kStopBytesMax = 1024;
inline constexpr size_t kModelBytesMax = 256;

/// Scheduling class. A lower class goes behind a higher one and is shed first; none starves.
enum class Priority { kInteractive, kDefault, kBatch };

/// Of tenant names and cache keys.
inline constexpr size_t kTenantBytesMax = 128;
inline constexpr size_t kCacheKeyBytesMax = 256;

/// Of latency targets, in seconds.
inline constexpr double kLatencyTargetMin = 0.001;
inline constexpr double kLatencyTargetMax = 600;

/// A request as both front ends hand it over, wire checks done. Ranges: serving.md §1.3.
struct GenerateRequest {
  std::string request_id;  ///< Unique; the front end's.
  std::string model;
  /// Chat messages, raw text, or token ids. `param` of errors about it is `messages` or `prompt`.
  std::variant<std::vector<ChatMessage>, std::string, std::vector<int32_t>> input;
  std::optional<uint32_t> max_tokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  uint32_t top_k = 0;  ///< 0: off
  std::optional<int64_t> seed;
  std::vector<std::string> stop;
  uint32_t choices = 1;
  bool canvases = false;
  DecodingChoice decoding;
  double timeout_seconds = 0;      ///< The client's deadline, from now. 0: only the server's.
  std::string tenant = "default";  ///< Limits, fair share and prefix sharing are per tenant.
  Priority priority = Priority::kDefault;
  std::string cache_key;              ///< Joins the tenant in the salt of shared prefixes.
  double latency_target_seconds = 0;  ///< From now: the best answer by then is wanted. 0: none.
};

struct StartedEvent {
  std::string model;
  std::string system_fingerprint;  ///< "fp_" + 10 hex
  int64_t created = 0;             ///< Unix seconds.
  uint32_t prompt_tokens = 0;
  TenantRates rates;  ///< As they were when the request was admitted; for the rate headers.
};

/// Final text of one choice, whole UTF-8 characters, held back while it could begin a stop string.
struct DeltaEvent {
  uint32_t choice = 0;
  std::string text;
  uint32_t block = 0;
  uint32_t step = 0;
};

/// What a span says about its tokens; how a client applies it: Span in inference.proto, ClientCanvas in code.
enum class SpanOp { kReplace, kCommit, kFinal };

/// A run of tokens that follow each other, counted from the answer's beginning, and their text.
struct FrameSpan {
  SpanOp op = SpanOp::kReplace;
  uint32_t first = 0;
  uint32_t tokens = 0;
  std::string text;
};

/// One change of a choice's canvas. What is not final may be left out when the next frame sent has a kReplace span.
struct FrameEvent {
  uint32_t choice = 0;
  uint32_t step = 0;
  uint32_t block = 0;
  uint64_t epoch = 0;      ///< Of the group that took the step.
  uint32_t committed = 0;  ///< Tokens that are final: those below it.
  uint32_t extent = 0;     ///< Tokens that the canvas has, the masked ones counted.
  std::vector<FrameSpan> spans;
};

enum class FinishReason { kStop, kLength };

struct FinishedEvent {
  uint32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  uint32_t completion_tokens = 0;
  uint32_t forwards = 0;
  double time_to_first_token_seconds = 0;
  double decode_seconds = 0;   ///< When it was resumed: from the first placement on, prefills and pauses included.
  uint32_t cached_tokens = 0;  ///< Prompt tokens whose KV was shared with an earlier request. Resumed: 0, not known.
  uint32_t resumes = 0;        ///< Times that it went on on another group.
  uint32_t preemptions = 0;    ///< Times that it lost its pages to a more urgent one. Resumed: 0, not known.
  /// Steps that committed more than the policy asked for, to meet the latency target. Resumed: 0, not known.
  uint32_t paced_steps = 0;
  bool deadline_reached = false;  ///< Its time was over: the answer is what was final by then.

  double tokens_per_forward() const { return forwards == 0 ? 0.0 : static_cast<double>(completion_tokens) / forwards; }
};

struct ModelInfo {
  std::string id;
  int64_t created = 0;
  uint32_t max_model_len = 0;
  bool ready = false;
};

}  // namespace quicksilver
