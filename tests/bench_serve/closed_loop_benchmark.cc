// Runs the requests of a `quicksilver bench serve` command on an engine in this process, without any service around it:
// a closed loop of --max-concurrency sequences. What the service keeps of this throughput is its own doing. usage:
// closed_loop_benchmark MODEL_DIR [options of `quicksilver bench serve`]
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/status_macros.h"
#include "coordinator/text/text.h"
#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"
#include "tools/bench_serve/dataset.h"
#include "tools/bench_serve/options.h"

namespace quicksilver {
namespace {

constexpr int32_t kPageSize = 64;
constexpr size_t kPromptTokensMax = 100'000;

struct Totals {
  uint64_t tokens = 0, forwards = 0;
};

/// One client of the loop: each request after the one before.
absl::StatusOr<Totals> Client(EngineGroup& group, const std::vector<v1::Submit>& submits, size_t first, size_t stride) {
  Totals totals;
  for (size_t i = first; i < submits.size(); i += stride) {
    RETURN_IF_ERROR(group.Submit(submits[i]));
    ASSIGN_OR_RETURN(const Transcript transcript, group.Await(submits[i].sequence_id()));
    totals.tokens += transcript.end.completion_tokens();
    totals.forwards += transcript.end.forwards();
  }
  return totals;
}

absl::StatusOr<std::vector<v1::Submit>> Submits(const BenchServeOptions& options, const std::string& model,
                                                const ModelSpec& spec) {
  ASSIGN_OR_RETURN(const auto text, TextModel::Load(options.tokenizer.empty() ? model : options.tokenizer));
  ASSIGN_OR_RETURN(const std::vector<BenchPrompt> prompts, MakePrompts(options));
  std::vector<v1::Submit> submits;
  for (const BenchPrompt& prompt : prompts) {
    absl::StatusOr<std::vector<int32_t>> ids = options.backend == BenchBackend::kChat
                                                   ? text->EncodeChat({{"user", prompt.text, ""}}, kPromptTokensMax)
                                                   : text->Encode(prompt.text, kPromptTokensMax);
    RETURN_IF_ERROR(ids.status());
    submits.push_back(
        MakeSubmit(submits.size() + 1, *ids, prompt.tokens_max, {spec.stop_ids.begin(), spec.stop_ids.end()}));
    submits.back().set_provisional(false);
  }
  return submits;
}

absl::Status Measure(const std::string& model, const BenchServeOptions& options) {
  EngineGroup::Options engine;
  engine.directory = model;
  engine.page_size = kPageSize;
  engine.pages = 1024;
  engine.make_ops = [] { return MakeCpuOps(DType::kF32, {.threads = 1}); };
  ASSIGN_OR_RETURN(const auto group, EngineGroup::Start(engine));
  ASSIGN_OR_RETURN(const std::vector<v1::Submit> submits, Submits(options, model, group->spec()));
  const size_t clients = options.max_concurrency.value_or(32);
  std::vector<absl::StatusOr<Totals>> totals(clients, Totals());
  std::vector<std::thread> threads;
  const absl::Duration start = MonotonicNow();
  for (size_t i = 0; i < clients; ++i) {
    threads.emplace_back([&, i] { totals[i] = Client(*group, submits, i, clients); });
  }
  for (std::thread& thread : threads) thread.join();
  const double seconds = absl::ToDoubleSeconds(MonotonicNow() - start);
  Totals all;
  for (const absl::StatusOr<Totals>& one : totals) {
    RETURN_IF_ERROR(one.status());
    all.tokens += one->tokens;
    all.forwards += one->forwards;
  }
  std::printf(
      "{\"completed\": %zu, \"duration\": %.3f, \"total_output_tokens\": %llu, \"output_throughput\": %.2f, "
      "\"tokens_per_forward\": %.3f}\n",
      submits.size(), seconds, static_cast<unsigned long long>(all.tokens), static_cast<double>(all.tokens) / seconds,
      static_cast<double>(all.tokens) / static_cast<double>(std::max<uint64_t>(all.forwards, 1)));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL_DIR [options of quicksilver bench serve]\n", argv[0]);
    return 2;
  }
  BenchServeOptions options;
  if (const auto exit = ParseBenchServeOptions({argv + 2, argv + argc}, options); exit.has_value()) return *exit;
  absl::Status status = CheckOptions(options);
  if (status.ok()) status = Measure(argv[1], options);
  if (!status.ok()) std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Main(argc, argv); }
