#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cpu/host_blocks.h"
#include "kernels/cpu/host_memory.h"
#include "kernels/cpu/host_program.h"
#include "kernels/ops.h"

namespace quicksilver {

/// Row-major, as given, rounded to the activation type.
class ReferenceWeight final : public GemmWeight {
 public:
  ReferenceWeight(ConstMatrix host, DType activation);

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  size_t bytes() const override { return values_.size() * sizeof(float); }
  float at(int64_t out, int64_t in) const { return values_[static_cast<size_t>(out * in_ + in)]; }

 private:
  int64_t out_;
  int64_t in_;
  std::vector<float> values_;
};

class ReferenceOps final : public Ops {
 public:
  explicit ReferenceOps(DType activation) : activation_(activation), memory_(0) {}

  std::string name() const override { return "cpu-reference"; }
  DType activation_dtype() const override { return activation_; }
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override;
  void Upload(const void* host, void* device, size_t bytes) override;
  void Download(const void* device, void* host, size_t bytes) override;
  absl::Status Synchronize() override { return absl::OkStatus(); }
  absl::Status status() const override { return absl::OkStatus(); }
  absl::StatusOr<DeviceBuffer> AllocateShared(size_t bytes) override { return Allocate(bytes); }
  absl::Status Await(const uint32_t*, uint32_t, int32_t) override { return absl::OkStatus(); }
  bool prefers_programs() const override { return false; }
  absl::StatusOr<std::unique_ptr<Program>> Record(const std::function<void()>& enqueue,
                                                  const int32_t* proceed) override {
    return std::make_unique<HostProgram>(enqueue, proceed);
  }
  void AdvanceBlocks(const BlockStep& step) override { AdvanceBlocksOnHost(step); }
  void BeginStep(const StepLayout&) override {}
  absl::StatusOr<std::unique_ptr<GemmWeight>> PrepareWeight(ConstMatrix host, WeightRole role) override;
  void Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) override;
  void RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) override;
  void AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) override;
  void AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) override;
  void Scale(const float* factor, Matrix x) override;
  void AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) override;
  void Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) override;
  void AddBias(const float* bias, Matrix x) override;
  void RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                      const KvLayer& cache, Matrix qkv) override;
  void Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads, const AttentionRule& rule,
                 const KvLayer& cache, Matrix out) override;
  void GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) override;
  void Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
             float* weights) override;
  absl::StatusOr<std::unique_ptr<ExpertWeights>> PrepareExperts(const ExpertShape& shape) override;
  void ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                 const float* expert_weights, int32_t k, bool add, Matrix out) override;
  void GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) override;
  void ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) override;
  void SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                 const SoftEmbedBatch& batch, Matrix out) override;
  void Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                  const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) override;

 private:
  void Rotate(const StepLayout& layout, const RopeParameters& rope, int32_t heads, Matrix x);
  void WriteKv(const StepLayout& layout, ConstMatrix k, ConstMatrix v, const KvLayer& cache);
  void Free(void* data, size_t bytes) override { memory_.Free(data, bytes); }

  DType activation_;
  HostMemory memory_;
};

}  // namespace quicksilver
