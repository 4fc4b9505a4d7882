#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "coordinator/core/generate.h"
#include "coordinator/text/text.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

/// What the coordinator knows about a model that groups serve.
struct ModelFacts {
  std::string name;
  int64_t created = 0;  ///< Unix seconds of its first group.
  uint32_t max_model_len = 0;
  uint32_t vocabulary = 0;
  int32_t mask_id = -1;
  uint32_t block_length = 1;
  std::vector<int32_t> stop_ids;
  std::string family;
  std::vector<std::string_view> policies;  ///< That a request may choose, of kPolicyNames. Empty: not known.
  bool infill = false;                     ///< Takes suffixes and fixed tokens.
  v1::Grid grid = v1::GRID_ABSOLUTE;
};

struct SamplingDefaults {
  float temperature = 1.0f;
  float top_p = 1.0f;
};

/// A request in the worker's terms.
struct PreparedRequest {
  uint32_t prompt_tokens = 0;  ///< The suffix counted.
  uint32_t max_tokens = 0;
  uint64_t prompt_characters = 0;  ///< Of a raw prompt, when log-probabilities are wanted.
  v1::Submit submit;               ///< Of every choice; without ids, times and checkpoint.
  std::vector<uint64_t> prefix;    ///< PrefixChain() of the prompt.
};

/// How errors name the request's input: `messages` or `prompt`.
const char* InputParam(const GenerateRequest& request);

/// What tenant and key share KV pages under: 32 bytes, equal for equal pairs alone.
std::string CacheSalt(const std::string& tenant, const std::string& cache_key);

/// Tokenises and checks what needs the model. `random_seed` is used when the request has none. Pure, but for the time
/// it takes: bounded by the length of the model and of the text.
std::variant<PreparedRequest, ApiError> Prepare(const GenerateRequest& request, const TextModel& text,
                                                const ModelFacts& model, const SamplingDefaults& defaults,
                                                uint64_t random_seed);

}  // namespace quicksilver
