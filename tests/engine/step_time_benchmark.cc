// Prints where a denoising step of the engine spends its time: matrix products, LM head, other operations, and the
// engine itself (layout, merge, policies, reports). Counts the processor time of the engine's thread, so that other
// work on the machine does not show. usage: step_time_benchmark MODEL_DIR [sequences…]
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "tests/support/engine_group.h"

namespace quicksilver {
namespace {

enum Part { kGemm, kLmHead, kAttention, kOther, kParts };

double ThreadSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Watch {
  double parts[kParts] = {};
  double first = 0.0;  // When the first operation of the first step began.
  double last = 0.0;   // When the last one ended.
  bool running = false;
};

/// The fast operations with a stopwatch: CPU operations are done when they return.
class TimedOps final : public Ops {
 public:
  explicit TimedOps(Watch* watch) : inner_(MakeCpuOps(DType::kF32, CpuOpsOptions())), watch_(watch) {}

  std::string name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override { return inner_->Allocate(bytes); }
  void Upload(const void* host, void* device, size_t bytes) override {
    Time(kOther, [&] { inner_->Upload(host, device, bytes); });
  }
  void Download(const void* device, void* host, size_t bytes) override {
    Time(kOther, [&] { inner_->Download(device, host, bytes); });
  }
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  absl::Status status() const override { return inner_->status(); }
  absl::StatusOr<DeviceBuffer> AllocateShared(size_t bytes) override { return inner_->AllocateShared(bytes); }
  absl::Status Await(const uint32_t* word, uint32_t value, int32_t milliseconds) override {
    return inner_->Await(word, value, milliseconds);
  }
  bool prefers_programs() const override { return inner_->prefers_programs(); }
  void Rehearse(const std::function<void()>& enqueue) override { inner_->Rehearse(enqueue); }
  absl::StatusOr<std::unique_ptr<Program>> Record(const std::function<void()>& enqueue,
                                                  const int32_t* proceed) override {
    return inner_->Record(enqueue, proceed);
  }
  void AdvanceBlocks(const BlockStep& step) override {
    Time(kOther, [&] { inner_->AdvanceBlocks(step); });
  }
  void BeginStep(const StepLayout& layout) override { inner_->BeginStep(layout); }
  absl::StatusOr<std::unique_ptr<GemmWeight>> PrepareWeight(ConstMatrix host, WeightRole role) override {
    return inner_->PrepareWeight(host, role);
  }
  void Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) override {
    Time(kOther, [&] { inner_->Embed(ids, table, first_id, out); });
  }
  void RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) override {
    Time(kOther, [&] { inner_->RmsNorm(x, gain, epsilon, out); });
  }
  void AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) override {
    Time(kOther, [&] { inner_->AddRmsNorm(y, gain, epsilon, x, out); });
  }
  void AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) override {
    Time(kOther, [&] { inner_->AddNormed(y, gain, epsilon, x); });
  }
  void Scale(const float* factor, Matrix x) override {
    Time(kOther, [&] { inner_->Scale(factor, x); });
  }
  void AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) override {
    Time(kOther, [&] { inner_->AddRmsNormTo(rows, y, epsilon, x); });
  }
  void Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) override {
    Time(kGemm, [&] { inner_->Gemm(x, weight, out); });
  }
  void AddBias(const float* bias, Matrix x) override {
    Time(kOther, [&] { inner_->AddBias(bias, x); });
  }
  void RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                      const KvLayer& cache, Matrix qkv) override {
    Time(kOther, [&] { inner_->RotateAndCache(layout, transform, heads, kv_heads, cache, qkv); });
  }
  void Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads, const AttentionRule& rule,
                 const KvLayer& cache, Matrix out) override {
    Time(kAttention, [&] { inner_->Attention(layout, q, heads, kv_heads, rule, cache, out); });
  }
  void GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) override {
    Time(kOther, [&] { inner_->GatedMul(activation, gate_up, out); });
  }
  void ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) override {
    Time(kOther, [&] { inner_->ScatterRows(x, rows, out); });
  }
  void SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                 const SoftEmbedBatch& batch, Matrix out) override {
    Time(kOther, [&] { inner_->SoftEmbed(hidden, weight, table, shard, batch, out); });
  }
  void Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
             float* weights) override {
    Time(kOther, [&] { inner_->Route(layout, logits, rule, experts, weights); });
  }
  absl::StatusOr<std::unique_ptr<ExpertWeights>> PrepareExperts(const ExpertShape& shape) override {
    return inner_->PrepareExperts(shape);
  }
  void ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                 const float* expert_weights, int32_t k, bool add, Matrix out) override {
    Time(kGemm, [&] { inner_->ExpertMlp(x, weights, activation, experts, expert_weights, k, add, out); });
  }
  void GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) override {
    Time(kOther, [&] { inner_->GatherRows(x, rows, out); });
  }
  void Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                  const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) override {
    Time(kLmHead, [&] { inner_->Candidates(hidden, weight, shard, batch, top_count, out, top); });
  }

 private:
  template <typename Run>
  void Time(Part part, const Run& run) {
    const double began = ThreadSeconds();
    run();
    if (!watch_->running) return;
    if (watch_->first == 0.0) watch_->first = began;
    watch_->last = ThreadSeconds();
    watch_->parts[part] += watch_->last - began;
  }
  void Free(void*, size_t) override {}  // Buffers belong to inner_.

  const std::unique_ptr<Ops> inner_;
  Watch* const watch_;
};

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
  options.make_ops = [&] { return std::make_unique<TimedOps>(&watch); };
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
