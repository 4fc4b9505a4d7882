#pragma once

#include <nlohmann/json.hpp>

#include "tools/gpu/bench_cases.h"
#include "tools/gpu/candidates_bench.h"
#include "tools/gpu/experts_bench.h"
#include "tools/gpu/step_bench.h"
#include "tools/gpu/step_cost.h"

namespace quicksilver {

// Rows of the table as JSON. Times in microseconds. "met" is there when the case has an aim.

/// `cost` and `ceilings`: of the whole device, all ranks together.
nlohmann::ordered_json StepRow(const BenchCase& of, const StepTimes& times, const StepCost& cost,
                               const Ceilings& ceilings);

nlohmann::ordered_json CandidatesRow(const BenchCase& of, const CandidatesTimes& times, const Ceilings& ceilings);

nlohmann::ordered_json ExpertsRow(const BenchCase& of, const ExpertsTimes& times, const Ceilings& ceilings);

/// Ceilings in the units people talk in: GB/s and TFLOP/s.
nlohmann::ordered_json CeilingsObject(const Ceilings& ceilings);

}  // namespace quicksilver
