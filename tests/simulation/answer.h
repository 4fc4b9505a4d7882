#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/simulation/plan.h"

namespace quicksilver::simulation {

enum class ChoiceEnd { kNone, kStop, kLength, kDeadline, kError };

/// The answer of an undisturbed run, alone.
struct Answer {
  std::vector<int32_t> tokens;  ///< The canvas from the prompt's end on.
  int32_t final_tokens = 0;
  ChoiceEnd end = ChoiceEnd::kNone;
};

/// What groups of this build answer to a choice of `request`.
Answer RunAlone(const Plan& plan, const RequestPlan& request, int choice, const std::string& build);

}  // namespace quicksilver::simulation
