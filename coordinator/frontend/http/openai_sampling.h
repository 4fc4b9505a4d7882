#pragma once

#include <optional>

#include "coordinator/frontend/http/json_fields.h"
#include "coordinator/frontend/http/openai_request.h"

namespace quicksilver {

// What chat, completions and fill-in-the-middle have in common (serving.md §1.3, §2.4).

/// model, temperature, top_p, seed, n, stop, penalties and logit_bias.
void ReadSampling(JsonFields& fields, const OpenAiLimits& limits, double temperature_max, GenerateRequest& request);

/// Token ids from 0, or, with `partial`, also InfillChoice::kUndecided. Nothing: a fault was told.
std::optional<std::vector<int32_t>> ReadTokenIds(JsonFields& fields, const std::string& name,
                                                 const nlohmann::json& list, bool partial = false);

}  // namespace quicksilver
