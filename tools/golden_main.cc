// Compares this engine with recorded runs of the reference implementations: one verdict a case, exit 1 on any failure.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "kernels/cpu/cpu_ops.h"
#include "tools/golden_check.h"

namespace quicksilver {
namespace {

struct Counts {
  int passed = 0;
  int failed = 0;
  int skipped = 0;
};

void Print(const std::vector<CaseResult>& results, Counts& counts) {
  for (const CaseResult& result : results) {
    const char* verdict = "skipped";
    if (result.verdict == Verdict::kPass) {
      verdict = "pass";
      ++counts.passed;
    } else if (result.verdict == Verdict::kFail) {
      verdict = "FAIL";
      ++counts.failed;
    } else {
      ++counts.skipped;
    }
    const std::string where =
        result.checkpoint.empty() ? "" : "  " + result.checkpoint + "  tp=" + std::to_string(result.ranks);
    std::printf("%-7s  %s%s  (%s)\n", verdict, result.name.c_str(), where.c_str(), result.detail.c_str());
    std::fflush(stdout);
  }
}

int Main(int argc, char** argv) {
  CLI::App app("Runs every recorded case of a directory in the golden format and prints a verdict for each.");
  std::string directory;
  std::vector<int> sizes = {1, 2, 4};
  app.add_option("DIR", directory, "A directory with manifest.json, checkpoints/, forward/ and traces/")->required();
  app.add_option("--tensor-parallel-size", sizes, "Group sizes to run, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  bool reference = false;
  app.add_flag("--reference-operations", reference, "Compute with the plain-loop operations in place of the fast ones");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const absl::StatusOr<GoldenSet> set = ReadGoldenSet(directory);
  if (!set.ok()) {
    std::fprintf(stderr, "golden: %s\n", std::string(set.status().message()).c_str());
    return kExitModel;
  }
  const MakeOps make_ops = [reference] {
    return reference ? MakeReferenceOps(DType::kF32) : MakeCpuOps(DType::kF32, CpuOpsOptions());
  };
  Counts counts;
  for (const GoldenCheckpoint& checkpoint : set->checkpoints) {
    for (const int ranks : sizes) {
      Print(CheckForwards(directory, checkpoint, ranks, make_ops), counts);
      Print(CheckTraces(*set, checkpoint, ranks, make_ops), counts);
    }
  }
  Print(ListSkipped(*set), counts);
  std::printf("%d passed, %d failed, %d skipped\n", counts.passed, counts.failed, counts.skipped);
  return counts.failed == 0 && counts.passed > 0 ? kExitOk : kExitInternal;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) {
  try {
    return quicksilver::Main(argc, argv);
  } catch (const nlohmann::json::exception& wrong) {
    std::fprintf(stderr, "golden: not in the golden format: %s\n", wrong.what());
    return quicksilver::kExitModel;
  }
}
