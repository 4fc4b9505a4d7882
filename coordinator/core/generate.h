#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "coordinator/core/api_error.h"
#include "coordinator/core/decoding_choice.h"

namespace quicksilver {

struct ChatMessage {
  std::string role;  ///< system, user, assistant or tool; `developer` has become `system`.
  std::string content;
  std::string name;
};

/// What of the answer is there already. Positions count from its beginning; kUndecided: to be decided.
struct InfillChoice {
  static constexpr int32_t kUndecided = -1;
  std::variant<std::monostate, std::string, std::vector<int32_t>> suffix;  ///< Follows the answer.
  std::vector<int32_t> fixed_ids;                                          ///< Never changed.
  std::variant<std::monostate, std::string, std::vector<int32_t>> draft;   ///< What it begins with.
};

/// Of logit_bias and of forbidden_ids.
inline constexpr size_t kBiasesMax = 1024;
inline constexpr float kBiasMax = 100.0f;
inline constexpr float kPenaltyMax = 2.0f;
inline constexpr uint32_t kTopLogProbabilitiesMax = 20;

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
  uint32_t max_tokens_default = UINT32_MAX;  ///< Without one: so many, or what the model's length leaves.
  std::optional<float> temperature;
  std::optional<float> top_p;
  uint32_t top_k = 0;  ///< 0: off
  std::optional<int64_t> seed;
  std::map<int32_t, float> logit_bias;  ///< Token ids; [-100, 100], where -100 forbids.
  std::vector<int32_t> forbidden_ids;
  float presence_penalty = 0;                     ///< [-2, 2]: once for a token that the answer has.
  float frequency_penalty = 0;                    ///< [-2, 2]: for each time that the answer has it.
  std::optional<uint32_t> top_log_probabilities;  ///< Log-probabilities are wanted, with so many alternatives.
  std::vector<std::string> stop;
  uint32_t choices = 1;
  bool canvases = false;
  DecodingChoice decoding;
  InfillChoice infill;
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
  TenantRates rates;               ///< As they were when the request was admitted; for the rate headers.
  uint64_t prompt_characters = 0;  ///< Of a raw prompt, when log-probabilities are wanted.
};

/// In place of a log-probability that is not known, or too small to be told.
inline constexpr float kNoLogProbability = -9999.0f;

struct AlternativeToken {
  int32_t id = 0;
  std::string bytes;  ///< May be a part of a UTF-8 character; empty for special tokens.
  float log_probability = kNoLogProbability;
};

/// A token of the answer. Natural log of its probability at the step that wrote it, before temperature, top-k, top-p.
struct WrittenToken {
  AlternativeToken token;
  std::vector<AlternativeToken> top;  ///< Descending.
  uint64_t offset = 0;                ///< Characters of the answer's text before it.
};

/// Final text of one choice, whole UTF-8 characters, held back while it could begin a stop string.
struct DeltaEvent {
  uint32_t choice = 0;
  std::string text;
  uint32_t block = 0;
  uint32_t step = 0;
  std::vector<WrittenToken> tokens;  ///< Exactly those of `text`, when log-probabilities are wanted.
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
  std::string_view policy;        ///< What was run, of kPolicyNames; empty: not known.
  std::string_view cache;         ///< The same, of kCacheNames.

  double tokens_per_forward() const { return forwards == 0 ? 0.0 : static_cast<double>(completion_tokens) / forwards; }
};

struct ModelInfo {
  std::string id;
  int64_t created = 0;
  uint32_t max_model_len = 0;
  bool ready = false;
  std::string family;
  std::vector<std::string_view> policies;  ///< That a request may choose, of kPolicyNames.
  bool infill = false;                     ///< Takes suffixes and fixed tokens.
};

}  // namespace quicksilver
