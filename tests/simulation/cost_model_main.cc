// Replays a cost model of steps at the size of a data centre through the real dispatcher.

#include <CLI/CLI.hpp>
#include <cstdio>

#include "tests/simulation/cost_model.h"

int main(int argc, char** argv) {
  using namespace quicksilver::simulation;
  CostOptions options;
  bool without_affinity = false;
  CLI::App app(
      "Replays a cost model of steps through the real dispatcher.\n"
      "Step times are floors worked out from the figures given, not measurements.");
  app.add_option("--groups", options.groups)->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--gpus", options.step.gpus, "Of a group.")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--requests", options.requests)->check(CLI::Range(1, 100000000))->capture_default_str();
  app.add_option("--load", options.load, "Arrivals, as a share of the capacity without shared prefixes.")
      ->capture_default_str();
  app.add_option("--sequences", options.sequences_max, "At once on a group.")->capture_default_str();
  app.add_option("--tokens-per-forward", options.tokens_per_forward)->capture_default_str();
  app.add_option("--answer-tokens", options.answer_tokens)->capture_default_str();
  app.add_option("--prefixes", options.prefixes, "System prompts.")->capture_default_str();
  app.add_option("--weight-bytes", options.step.weight_bytes)->capture_default_str();
  app.add_option("--position-bytes", options.step.position_bytes)->capture_default_str();
  app.add_option("--row-flops", options.step.row_flops)->capture_default_str();
  app.add_option("--bandwidth", options.step.bandwidth, "Bytes a second of a GPU.")->capture_default_str();
  app.add_option("--peak", options.step.peak, "Flops a second of a GPU.")->capture_default_str();
  app.add_option("--collectives", options.step.collectives_seconds, "Seconds a step.")->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  app.add_flag("--without-affinity", without_affinity, "Placement does not look at prefixes.");
  CLI11_PARSE(app, argc, argv);
  options.affinity = !without_affinity;
  std::printf("%d groups x %d GPUs, %ld requests at %.2f of the capacity, affinity %s\n", options.groups,
              options.step.gpus, static_cast<long>(options.requests), options.load, options.affinity ? "on" : "off");
  std::printf("ASSUMED step times: floors by max(bytes / bandwidth, flops / peak) / GPUs + collectives\n");
  const CostReport report = RunCostModel(options, [&](int64_t come) {
    std::fprintf(stderr, "%ld of %ld requests have come\n", static_cast<long>(come),
                 static_cast<long>(options.requests));
  });
  std::printf("%s\n", report.ToString().c_str());
  return report.idle ? 0 : 1;
}
