#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/ops.h"

namespace quicksilver {

/// The processor time of the calling thread, in seconds: other work on the machine does not show.
double ThreadSeconds();

/// Operations of a processor with a stopwatch: they are done when they return.
class TimedHostOps final : public Ops {
 public:
  /// What ran, from when to when by `clock`. `weight`: of a product and of the LM head, else null.
  struct Call {
    const char* operation;
    const GemmWeight* weight = nullptr;
    double began = 0.0;
    double ended = 0.0;
  };
  using Clock = std::function<double()>;
  using Listener = std::function<void(const Call&)>;

  TimedHostOps(std::unique_ptr<Ops> inner, Clock clock, Listener listener)
      : inner_(std::move(inner)), clock_(std::move(clock)), listener_(std::move(listener)) {}

  std::string name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override { return inner_->Allocate(bytes); }
  void Upload(const void* host, void* device, size_t bytes) override {
    Time("upload", [&] { inner_->Upload(host, device, bytes); });
  }
  void Download(const void* device, void* host, size_t bytes) override {
    Time("download", [&] { inner_->Download(device, host, bytes); });
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
  absl::StatusOr<std::unique_ptr<GemmWeight>> PrepareWeight(ConstMatrix host, WeightRole role) override {
    return inner_->PrepareWeight(host, role);
  }
  absl::StatusOr<std::unique_ptr<ExpertWeights>> PrepareExperts(const ExpertShape& shape) override {
    return inner_->PrepareExperts(shape);
  }
  void BeginStep(const StepLayout& layout) override { inner_->BeginStep(layout); }
  void AdvanceBlocks(const BlockStep& step) override {
    Time("policy", [&] { inner_->AdvanceBlocks(step); });
  }
  void Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) override {
    Time("embedding", [&] { inner_->Embed(ids, table, first_id, out); });
  }
  void RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) override {
    Time("norms", [&] { inner_->RmsNorm(x, gain, epsilon, out); });
  }
  void AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) override {
    Time("norms", [&] { inner_->AddRmsNorm(y, gain, epsilon, x, out); });
  }
  void AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) override {
    Time("norms", [&] { inner_->AddNormed(y, gain, epsilon, x); });
  }
  void Scale(const float* factor, Matrix x) override {
    Time("norms", [&] { inner_->Scale(factor, x); });
  }
  void AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) override {
    Time("norms", [&] { inner_->AddRmsNormTo(rows, y, epsilon, x); });
  }
  void Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) override {
    Time(
        "product", [&] { inner_->Gemm(x, weight, out); }, &weight);
  }
  void AddBias(const float* bias, Matrix x) override {
    Time("bias", [&] { inner_->AddBias(bias, x); });
  }
  void RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                      const KvLayer& cache, Matrix qkv) override {
    Time("rotation", [&] { inner_->RotateAndCache(layout, transform, heads, kv_heads, cache, qkv); });
  }
  void Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads, const AttentionRule& rule,
                 const KvLayer& cache, Matrix out) override {
    Time("attention", [&] { inner_->Attention(layout, q, heads, kv_heads, rule, cache, out); });
  }
  void GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) override {
    Time("activation", [&] { inner_->GatedMul(activation, gate_up, out); });
  }
  void Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
             float* weights) override {
    Time("routing", [&] { inner_->Route(layout, logits, rule, experts, weights); });
  }
  void ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                 const float* expert_weights, int32_t k, bool add, Matrix out) override {
    Time("experts", [&] { inner_->ExpertMlp(x, weights, activation, experts, expert_weights, k, add, out); });
  }
  void GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) override {
    Time("gathering", [&] { inner_->GatherRows(x, rows, out); });
  }
  void ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) override {
    Time("gathering", [&] { inner_->ScatterRows(x, rows, out); });
  }
  void SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                 const SoftEmbedBatch& batch, Matrix out) override {
    Time("embedding", [&] { inner_->SoftEmbed(hidden, weight, table, shard, batch, out); });
  }
  void Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                  const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) override {
    Time(
        "head", [&] { inner_->Candidates(hidden, weight, shard, batch, top_count, out, top); }, &weight);
  }

 private:
  template <typename Run>
  void Time(const char* operation, const Run& run, const GemmWeight* weight = nullptr) {
    Call call = {.operation = operation, .weight = weight, .began = clock_()};
    run();
    call.ended = clock_();
    listener_(call);
  }
  void Free(void*, size_t) override {}  // Buffers belong to inner_.

  const std::unique_ptr<Ops> inner_;
  const Clock clock_;
  const Listener listener_;
};

}  // namespace quicksilver
