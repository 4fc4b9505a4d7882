#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/simulation/simulation.h"

namespace quicksilver::simulation {
namespace {

constexpr int kShrinkRunsMax = 400;
constexpr size_t kLinesMax = 40;

// Tries to leave out each element, last first.
template <typename Element>
bool DropSome(Plan& plan, std::vector<Element> Plan::*part, Mutant mutant, const std::string& rule, int& runs) {
  bool dropped = false;
  for (size_t i = (plan.*part).size(); i-- > 0;) {
    if (++runs > kShrinkRunsMax) return false;
    Plan smaller = plan;
    (smaller.*part).erase((smaller.*part).begin() + static_cast<std::ptrdiff_t>(i));
    const RunResult result = RunPlan(smaller, mutant, /*tracing=*/false);
    if (!result.violation || result.violation->rule != rule) continue;
    plan = std::move(smaller);
    dropped = true;
  }
  return dropped;
}

// What concerns the request that was hurt, and the world.
std::string LastLines(const RunResult& result) {
  const uint64_t request = result.violation->request;
  std::vector<const TraceLine*> lines;
  for (const TraceLine& line : result.trace) {
    if (request == 0 || line.request == 0 || line.request == request) lines.push_back(&line);
  }
  std::string text;
  for (size_t i = lines.size() > kLinesMax ? lines.size() - kLinesMax : 0; i < lines.size(); ++i) {
    absl::StrAppend(&text, "  ", absl::FormatDuration(lines[i]->at), " ",
                    lines[i]->request == 0 ? "" : absl::StrCat("[", lines[i]->request, "] "), lines[i]->text, "\n");
  }
  return text;
}

}  // namespace

Plan Shrink(const Plan& plan, Mutant mutant, const std::string& rule) {
  Plan small = plan;
  int runs = 0;
  bool shrinks = true;
  while (shrinks) {
    shrinks = DropSome(small, &Plan::faults, mutant, rule, runs);
    shrinks = DropSome(small, &Plan::requests, mutant, rule, runs) || shrinks;
  }
  return small;
}

std::optional<std::string> StoryOf(uint64_t seed, Mutant mutant) {
  const Plan plan = MakePlan(seed);
  const RunResult result = RunPlan(plan, mutant, /*tracing=*/false);
  if (!result.violation) return std::nullopt;
  const Plan small = Shrink(plan, mutant, result.violation->rule);
  RunResult shrunk = RunPlan(small, mutant, /*tracing=*/true);
  if (!shrunk.violation) return absl::StrCat("seed ", seed, " is not deterministic: it fails now and then");
  std::string text = absl::StrCat("seed ", seed, " breaks `", shrunk.violation->rule, "` at ",
                                  absl::FormatDuration(shrunk.violation->at), ": ", shrunk.violation->text,
                                  "\nreplay: simulate --seed ", seed);
  if (mutant != Mutant::kNone) absl::StrAppend(&text, " --mutant ", static_cast<int>(mutant));
  absl::StrAppend(&text, "\n", plan.groups.size(), " groups, ", plan.coordinators.size(), " coordinators; of ",
                  plan.faults.size(), " faults and ", plan.requests.size(), " requests these are enough:\n");
  for (const FaultPlan& fault : small.faults) absl::StrAppend(&text, "  ", Describe(fault), "\n");
  for (const RequestPlan& request : small.requests) absl::StrAppend(&text, "  ", Describe(request), "\n");
  absl::StrAppend(&text, "the last events:\n", LastLines(shrunk));
  return text;
}

}  // namespace quicksilver::simulation
