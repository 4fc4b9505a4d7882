#include "tools/gpu/timed_ops.h"

#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/cuda_ops.h"

namespace quicksilver {
namespace {

/// Enqueues once, without a loop: the caller asks for one step.
class EagerProgram final : public Program {
 public:
  explicit EagerProgram(std::function<void()> enqueue) : enqueue_(std::move(enqueue)) {}
  void Launch() override { enqueue_(); }

 private:
  std::function<void()> enqueue_;
};

std::string NameOf(const char* what, const GemmWeight& weight) {
  return absl::StrCat(what, " ", weight.in_features(), " -> ", weight.out_features());
}

}  // namespace

GemmPlansReport TimedOps::products() const { return CudaProductsOf(*inner_); }

TimedOps::TimedOps(std::unique_ptr<Ops> inner) : inner_(std::move(inner)), stream_(CudaStreamOf(*inner_)) {}

void TimedOps::Listen(bool listen) {
  listening_ = listen;
  if (listen) marks_.clear();
}

void TimedOps::Note(const std::string& kind, double bytes) {
  if (!listening_ || !status_.ok()) return;
  absl::StatusOr<CudaEvent> event = MakeCudaEvent(cudaEventDefault);
  status_ = event.ok() ? CudaStatus(cudaEventRecord(event->get(), stream_), "cudaEventRecord") : event.status();
  if (status_.ok()) marks_.push_back({kind, bytes, *std::move(event)});
}

absl::StatusOr<std::map<std::string, TimedOps::Part>> TimedOps::Parts() {
  RETURN_IF_ERROR(status_);
  RETURN_IF_ERROR(inner_->Synchronize());
  std::map<std::string, Part> parts;
  for (size_t i = 1; i < marks_.size(); ++i) {
    if (marks_[i].kind.empty()) continue;
    float milliseconds = 0.0f;
    RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&milliseconds, marks_[i - 1].event.get(), marks_[i].event.get()),
                               "cudaEventElapsedTime"));
    Part& part = parts[marks_[i].kind];
    part.seconds += milliseconds * 1e-3;
    part.bytes += marks_[i].bytes;
    ++part.calls;
  }
  return parts;
}

absl::StatusOr<std::unique_ptr<Program>> TimedOps::Record(const std::function<void()>& enqueue,
                                                          const int32_t* proceed) {
  if (!listening_) return inner_->Record(enqueue, proceed);
  return std::unique_ptr<Program>(std::make_unique<EagerProgram>(enqueue));
}

void TimedOps::BeginStep(const StepLayout& layout) {
  Note("");
  inner_->BeginStep(layout);
  Note("begin step");
}

void TimedOps::AdvanceBlocks(const BlockStep& step) {
  inner_->AdvanceBlocks(step);
  Note("advance blocks");
}

void TimedOps::Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) {
  inner_->Embed(ids, table, first_id, out);
  Note("embed");
}

void TimedOps::RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) {
  inner_->RmsNorm(x, gain, epsilon, out);
  Note("norm");
}

void TimedOps::AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) {
  inner_->AddRmsNorm(y, gain, epsilon, x, out);
  Note("add and norm");
}

void TimedOps::AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) {
  inner_->AddNormed(y, gain, epsilon, x);
  Note("norm and add");
}

void TimedOps::Scale(const float* factor, Matrix x) {
  inner_->Scale(factor, x);
  Note("scale");
}

void TimedOps::AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) {
  inner_->AddRmsNormTo(rows, y, epsilon, x);
  Note("add and norm");
}

void TimedOps::Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) {
  inner_->Gemm(x, weight, out);
  Note(NameOf("product", weight), static_cast<double>(weight.bytes()));
}

void TimedOps::AddBias(const float* bias, Matrix x) {
  inner_->AddBias(bias, x);
  Note("bias");
}

void TimedOps::RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                              const KvLayer& cache, Matrix qkv) {
  inner_->RotateAndCache(layout, transform, heads, kv_heads, cache, qkv);
  Note("rotate and cache");
}

void TimedOps::Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads,
                         const AttentionRule& rule, const KvLayer& cache, Matrix out) {
  inner_->Attention(layout, q, heads, kv_heads, rule, cache, out);
  Note("attention");
}

void TimedOps::GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) {
  inner_->GatedMul(activation, gate_up, out);
  Note("activate and multiply");
}

void TimedOps::ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  inner_->ScatterRows(x, rows, out);
  Note("scatter rows");
}

void TimedOps::SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                         const SoftEmbedBatch& batch, Matrix out) {
  inner_->SoftEmbed(hidden, weight, table, shard, batch, out);
  Note("soft embedding");
}

void TimedOps::Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
                     float* weights) {
  inner_->Route(layout, logits, rule, experts, weights);
  Note("route");
}

// Which weights it reads, the device decides: their bytes are not counted.
void TimedOps::ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                         const float* expert_weights, int32_t k, bool add, Matrix out) {
  inner_->ExpertMlp(x, weights, activation, experts, expert_weights, k, add, out);
  Note("experts");
}

void TimedOps::GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  inner_->GatherRows(x, rows, out);
  Note("gather rows");
}

void TimedOps::Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                          const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) {
  inner_->Candidates(hidden, weight, shard, batch, top_count, out, top);
  Note(NameOf("candidates", weight), static_cast<double>(weight.bytes()));
}

// Buffers are the inner Ops' own.
void TimedOps::Free(void* /*data*/, size_t /*bytes*/) { CHECK(false); }

}  // namespace quicksilver
