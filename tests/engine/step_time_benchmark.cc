// Prints where a denoising step of the engine spends its time: matrix products, LM head, other operations, and the
// engine itself (layout, merge, policies, reports). Counts the processor time of the engine's thread, so that other
// work on the machine does not show. usage: step_time_benchmark MODEL_DIR [sequences…]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"
#include "tools/timed_host_ops.h"

namespace quicksilver {
namespace {

enum Part { kGemm, kLmHead, kAttention, kOther, kParts };

struct Watch {
  double parts[kParts] = {};
  double first = 0.0;  // When the first operation of the first step began.
  double last = 0.0;   // When the last one ended.
  bool running = false;
};

Part PartOf(const std::string& operation) {
  if (operation == "product") return kGemm;
  if (operation == "head") return kLmHead;
  return operation == "attention" ? kAttention : kOther;
}

/// The fast operations with a stopwatch.
std::unique_ptr<Ops> MakeTimedOps(Watch* watch) {
  return std::make_unique<TimedHostOps>(MakeCpuOps(DType::kF32, CpuOpsOptions()), ThreadSeconds,
                                        [watch](const TimedHostOps::Call& call) {
                                          if (!watch->running) return;
                                          if (watch->first == 0.0) watch->first = call.began;
                                          watch->last = call.ended;
                                          watch->parts[PartOf(call.operation)] += call.ended - call.began;
                                        });
}

constexpr size_t kPrompt = 40;

struct Measured {
  double step = 0.0;
  double parts[kParts] = {};
};

/// Mean over the steps of `sequences` sequences that start together and never stop.
Measured Measure(const std::string& directory, int sequences, uint32_t tokens) {
  Watch watch;
  EngineGroup::Options options;
  options.directory = directory;
  options.page_size = 64;
  options.make_ops = [&] { return MakeTimedOps(&watch); };
  const auto group = EngineGroup::Start(options);
  if (!group.ok()) {
    std::fprintf(stderr, "%s\n", std::string(group.status().message()).c_str());
    std::exit(1);
  }
  watch.running = true;
  std::vector<v1::Submit> submits;
  for (int i = 0; i < sequences; ++i) {
    submits.push_back(MakeSubmit(static_cast<uint64_t>(i), std::vector<TokenId>(kPrompt, 100 + i), tokens));
    submits.back().mutable_decoding()->set_policy(v1::POLICY_STATIC);
  }
  const auto transcripts = (*group)->RunAll(submits);
  if (!transcripts.ok()) std::exit(1);
  const double steps = static_cast<double>((*group)->leader().Load().steps);
  Measured measured;
  measured.step = (watch.last - watch.first) / steps;
  for (int part = 0; part < kParts; ++part) measured.parts[part] = watch.parts[part] / steps;
  return measured;
}

/// The median of five runs.
void PrintRow(const std::string& directory, int sequences, uint32_t tokens) {
  std::vector<Measured> runs;
  for (int run = 0; run < 5; ++run) runs.push_back(Measure(directory, sequences, tokens));
  std::sort(runs.begin(), runs.end(), [](const Measured& a, const Measured& b) { return a.step < b.step; });
  const Measured& m = runs[runs.size() / 2];
  double ops = 0.0;
  for (const double part : m.parts) ops += part;
  std::printf("%9d %9u %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %18.2f\n", sequences, tokens, 1e6 * m.step,
              1e6 * m.parts[kGemm], 1e6 * m.parts[kLmHead], 1e6 * m.parts[kAttention], 1e6 * m.parts[kOther],
              1e6 * (m.step - ops), m.step / (m.parts[kGemm] + m.parts[kLmHead]));
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL_DIR [sequences…]\n", argv[0]);
    return 2;
  }
  std::vector<int> counts;
  for (int i = 2; i < argc; ++i) counts.push_back(static_cast<int>(std::strtol(argv[i], nullptr, 10)));
  if (counts.empty()) counts = {1, 4, 16};
  std::printf("%s, f32, tp = 1, one thread, one token a forward, prompt %zu; processor microseconds a step\n", argv[1],
              kPrompt);
  std::printf("%9s %9s %9s %9s %9s %9s %9s %9s %18s\n", "sequences", "answer", "step", "GEMM", "LM head", "attention",
              "other ops", "engine", "step / (GEMM + LM)");
  for (const int sequences : counts) {
    for (const uint32_t tokens : {24, 200}) PrintRow(argv[1], sequences, tokens);
  }
  return 0;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Main(argc, argv); }
