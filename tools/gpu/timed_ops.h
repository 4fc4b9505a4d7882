#pragma once

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/gemm_memory.h"
#include "kernels/cuda/gemm_options.h"
#include "kernels/ops.h"

namespace quicksilver {

/// Operations of a CUDA device that can say where a step spends its time. While it listens, a step is not recorded but
/// enqueued operation by operation, with an event of the device after each; otherwise everything goes straight on.
class TimedOps final : public Ops {
 public:
  /// `inner` comes from MakeCudaOps().
  explicit TimedOps(std::unique_ptr<Ops> inner);

  /// Seconds between the end of the operation before and the end of each operation, summed by kind of operation since
  /// Listen(true).
  struct Part {
    double seconds = 0.0;
    int calls = 0;
    double bytes = 0.0;  ///< Of weights that the calls read.
  };
  void Listen(bool listen);
  absl::StatusOr<std::map<std::string, Part>> Parts();

  cudaStream_t stream() const { return stream_; }
  GemmPlansReport products() const;

  std::string name() const override { return inner_->name(); }
  DType activation_dtype() const override { return inner_->activation_dtype(); }
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override { return inner_->Allocate(bytes); }
  absl::StatusOr<DeviceBuffer> AllocateShared(size_t bytes) override { return inner_->AllocateShared(bytes); }
  void Upload(const void* host, void* device, size_t bytes) override { inner_->Upload(host, device, bytes); }
  void Download(const void* device, void* host, size_t bytes) override { inner_->Download(device, host, bytes); }
  absl::Status Synchronize() override { return inner_->Synchronize(); }
  absl::Status status() const override { return inner_->status(); }
  absl::Status Await(const uint32_t* word, uint32_t value, int32_t milliseconds) override {
    return inner_->Await(word, value, milliseconds);
  }
  bool prefers_programs() const override { return !listening_ && inner_->prefers_programs(); }
  void Rehearse(const std::function<void()>& enqueue) override { inner_->Rehearse(enqueue); }
  absl::StatusOr<std::unique_ptr<Program>> Record(const std::function<void()>& enqueue,
                                                  const int32_t* proceed) override;
  absl::StatusOr<std::unique_ptr<GemmWeight>> PrepareWeight(ConstMatrix host, WeightRole role) override {
    return inner_->PrepareWeight(host, role);
  }
  void BeginStep(const StepLayout& layout) override;
  void AdvanceBlocks(const BlockStep& step) override;
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
  absl::StatusOr<std::unique_ptr<ExpertWeights>> PrepareExperts(const ExpertShape& shape) override {
    return inner_->PrepareExperts(shape);
  }
  void ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                 const float* expert_weights, int32_t k, bool add, Matrix out) override;
  void GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) override;
  void ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) override;
  void SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                 const SoftEmbedBatch& batch, Matrix out) override;
  void Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                  const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) override;

 private:
  struct Mark {
    std::string kind;  // Empty: the begin of a step.
    double bytes = 0.0;
    CudaEvent event;
  };
  void Note(const std::string& kind, double bytes = 0.0);
  void Free(void* data, size_t bytes) override;

  const std::unique_ptr<Ops> inner_;
  const cudaStream_t stream_;
  bool listening_ = false;
  absl::Status status_;
  std::vector<Mark> marks_;
};

}  // namespace quicksilver
