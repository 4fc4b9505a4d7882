#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

#include "coordinator/core/api_error.h"
#include "coordinator/core/generate.h"

namespace quicksilver {

struct OpenAiLimits {
  uint32_t choices_max = 8;  ///< `n`, at most 128.
  /// Choices of a whole request: prompts × n.
  uint32_t choices_total_max = 128;
  size_t messages_max = 2048;
  bool strict_params = false;  ///< Unknown top-level fields are 400 instead of ignored.
};

/// kFim: Mercury's fill in the middle (serving.md §2.4), which answers as completions do.
enum class OpenAiEndpoint { kChat, kCompletions, kFim };

/// A request, every field of serving.md §1.3, §1.6 and §2.4 checked.
struct OpenAiRequest {
  OpenAiEndpoint endpoint = OpenAiEndpoint::kChat;
  /// One a prompt (chat: one), `request_id` still empty. The index of a choice is prompt × n + its own.
  std::vector<GenerateRequest> generations;
  std::vector<std::string> echoes;  ///< What stands before each prompt's text; empty without `echo`.
  bool discards_text = false;       ///< `max_tokens: 0` with `echo`: one token is generated and thrown away.
  bool stream = false;
  bool include_usage = false;
  bool diffusing = false;  ///< Chunks replace each other (serving.md §2.3).
  bool canvases = false;   ///< Chunks with `quicksilver.frame` between the others.
  /// What answers say: `default` or `priority`; chunks only when the request named one.
  std::string service_tier = "default";
  bool names_service_tier = false;

  uint32_t choices() const { return generations.empty() ? 1 : generations[0].choices; }
};

/// `body` is the parsed body. What is not delivered is refused with 501, never ignored. Pure.
std::variant<OpenAiRequest, ApiError> ReadChatRequest(const nlohmann::json& body, const OpenAiLimits& limits);
std::variant<OpenAiRequest, ApiError> ReadCompletionRequest(const nlohmann::json& body, const OpenAiLimits& limits);
std::variant<OpenAiRequest, ApiError> ReadFimRequest(const nlohmann::json& body, const OpenAiLimits& limits);

/// ParseJson, then one of them.
std::variant<OpenAiRequest, ApiError> ParseOpenAiRequest(std::string_view body, OpenAiEndpoint endpoint,
                                                         const OpenAiLimits& limits);

}  // namespace quicksilver
