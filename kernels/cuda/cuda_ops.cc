#include "kernels/cuda/cuda_ops.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/check_routing.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/blocks.h"
#include "kernels/cuda/candidates.h"
#include "kernels/cuda/cublaslt_library.h"
#include "kernels/cuda/cuda_error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/moe_kernels.h"
#include "kernels/cuda/patience.h"
#include "kernels/cuda/program.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/soft_embedding.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/step_angles.h"

namespace quicksilver {
namespace {

bool SameShape(const ConstMatrix& a, const ConstMatrix& b) {
  return a.rows == b.rows && a.cols == b.cols && a.dtype == b.dtype;
}

class CudaOps final : public Ops {
 public:
  static absl::StatusOr<std::unique_ptr<Ops>> Make(const CudaOpsOptions& options);
  ~CudaOps() override;

  std::string name() const override { return name_; }
  DType activation_dtype() const override { return activation_; }
  cudaStream_t stream() const { return stream_.get(); }
  GemmPlansReport products() const { return gemm_->report(); }

  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes) override;
  absl::StatusOr<DeviceBuffer> AllocateShared(size_t bytes) override;
  void Upload(const void* host, void* device, size_t bytes) override;
  void Download(const void* device, void* host, size_t bytes) override;
  absl::Status Synchronize() override;
  absl::Status status() const override;
  absl::Status Await(const uint32_t* word, uint32_t value, int32_t milliseconds) override;

  bool prefers_programs() const override { return true; }
  void Rehearse(const std::function<void()>& enqueue) override;
  absl::StatusOr<std::unique_ptr<Program>> Record(const std::function<void()>& enqueue,
                                                  const int32_t* proceed) override;
  void Launch(const RecordedGraph& graph) {
    Enqueue("a recorded program", [&] { return graph.Launch(stream()); });
  }

  void AdvanceBlocks(const BlockStep& step) override;
  void BeginStep(const StepLayout& layout) override;
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
  CudaOps(const CudaOpsOptions& options, CudaDevice device)
      : activation_(options.activation), device_(std::move(device)), angles_(options.activation) {}

  absl::Status MakeParts(const CudaOpsOptions& options);
  void Free(void* data, size_t bytes) override;

  /// The runtime's current device is the thread's, and anybody may have changed it.
  void UseDevice() const { cudaSetDevice(device_.ordinal); }

  /// Calls launch(), which returns a cudaError_t or a Status, unless something has failed before.
  template <typename F>
  void Enqueue(const char* operation, F launch) {
    if (!status_.ok()) return;
    UseDevice();
    newest_ = operation;
    if constexpr (std::is_same_v<decltype(launch()), cudaError_t>) {
      const cudaError_t error = launch();
      if (error != cudaSuccess) Note(CudaStatus(error, operation));
    } else {
      Note(launch());
    }
  }
  void Note(absl::Status failure) const;
  /// What the stream, asked for its state, has failed with.
  void NoteStreamError(cudaError_t error) const;

  const DType activation_;
  const CudaDevice device_;
  std::string name_;
  CudaStream stream_;
  CudaEvent synchronized_;
  mutable absl::Status status_;
  const char* newest_ = "nothing";  // The operation that was enqueued last.
  bool recording_ = false;
  std::set<const void*> shared_;  // Host memory that the device reaches; Free() has to know.

  std::unique_ptr<Staging> staging_;
  std::unique_ptr<CudaGemm> gemm_;
  CudaMemory attention_memory_;
  std::unique_ptr<CudaAttention> attention_;
  std::unique_ptr<CudaExperts> experts_;
  DeviceWorkspace candidates_memory_{"logits"};
  StepAngles angles_;
};

/// Replays on the Ops that has recorded it.
class CudaProgram final : public Program {
 public:
  CudaProgram(CudaOps& ops, std::unique_ptr<RecordedGraph> graph) : ops_(ops), graph_(std::move(graph)) {}
  void Launch() override { ops_.Launch(*graph_); }

 private:
  CudaOps& ops_;
  std::unique_ptr<RecordedGraph> graph_;
};

absl::StatusOr<std::unique_ptr<Ops>> CudaOps::Make(const CudaOpsOptions& options) {
  ASSIGN_OR_RETURN(CudaDevice device, OpenCudaDevice(options.device));
  std::unique_ptr<CudaOps> ops(new CudaOps(options, std::move(device)));
  RETURN_IF_ERROR(ops->MakeParts(options));
  return std::unique_ptr<Ops>(std::move(ops));
}

absl::Status CudaOps::MakeParts(const CudaOpsOptions& options) {
  ASSIGN_OR_RETURN(stream_, MakeCudaStream());
  ASSIGN_OR_RETURN(synchronized_, MakeCudaEvent(cudaEventDisableTiming));
  ASSIGN_OR_RETURN(staging_, Staging::Create(stream(), options.staging_bytes));
  ASSIGN_OR_RETURN(const CublasLtLibrary* const library, LoadCublasLt());
  CudaGemmOptions gemm = options.gemm;
  gemm.activation = activation_;
  gemm.fp8_layers = options.fp8_layers;
  gemm.plans.deterministic = options.deterministic;
  ASSIGN_OR_RETURN(gemm_, CudaGemm::Make(*library, gemm, *staging_, stream()));
  name_ = absl::StrCat("cuda ", device_.name, ", ", gemm_->name());
  const CudaAttentionOptions attention = {.multiprocessors = device_.multiprocessors};
  ASSIGN_OR_RETURN(attention_memory_,
                   AllocateDeviceMemory(CudaAttention::WorkspaceBytes(attention), "partial results of the attention"));
  attention_ = std::make_unique<CudaAttention>(attention, attention_memory_.get());
  experts_ = std::make_unique<CudaExperts>(activation_, device_.ordinal, *staging_, stream());
  return absl::OkStatus();
}

CudaOps::~CudaOps() {
  UseDevice();
  // Work under way still uses what is freed next.
  if (stream() != nullptr) cudaStreamSynchronize(stream());
}

void CudaOps::Note(absl::Status failure) const {
  if (!status_.ok() || failure.ok()) return;
  status_ = absl::Status(failure.code(), absl::StrCat("CUDA device ", device_.ordinal, ": ", failure.message()));
}

void CudaOps::NoteStreamError(cudaError_t error) const {
  Note(CudaStatus(error, absl::StrCat("enqueued work, the newest being ", newest_)));
}

absl::StatusOr<DeviceBuffer> CudaOps::Allocate(size_t bytes) {
  if (recording_)
    return absl::FailedPreconditionError("device memory cannot be allocated while operations are recorded");
  UseDevice();
  ASSIGN_OR_RETURN(CudaMemory memory, AllocateDeviceMemory(bytes, "a buffer"));
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(memory.get(), 0, bytes, stream()), "cudaMemsetAsync"));
  return DeviceBuffer(this, memory.release(), bytes);
}

absl::StatusOr<DeviceBuffer> CudaOps::AllocateShared(size_t bytes) {
  if (recording_)
    return absl::FailedPreconditionError("shared memory cannot be allocated while operations are recorded");
  UseDevice();
  void* memory = nullptr;
  // Where addresses are unified the device sees it under the same one.
  RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&memory, std::max<size_t>(bytes, 1), cudaHostAllocMapped),
                             absl::StrCat("cannot pin ", bytes, " bytes of host memory")));
  std::memset(memory, 0, bytes);
  shared_.insert(memory);
  return DeviceBuffer(this, memory, bytes);
}

void CudaOps::Free(void* data, size_t /*bytes*/) {
  CHECK(!recording_);
  UseDevice();
  if (shared_.erase(data) == 0) {
    cudaFree(data);
    return;
  }
  cudaStreamSynchronize(stream());  // cudaFree waits for the device, this does not.
  cudaFreeHost(data);
}

void CudaOps::Upload(const void* host, void* device, size_t bytes) {
  Enqueue("Upload", [&]() -> absl::Status {
    if (recording_) return absl::FailedPreconditionError("Upload: not while operations are recorded");
    return CudaStatus(staging_->Upload(host, device, bytes), "Upload");
  });
}

void CudaOps::Download(const void* device, void* host, size_t bytes) {
  Enqueue("Download", [&]() -> absl::Status {
    if (recording_) return absl::FailedPreconditionError("Download: not while operations are recorded");
    return CudaStatus(staging_->Download(device, host, bytes), "Download");
  });
}

absl::Status CudaOps::Synchronize() {
  if (recording_) Note(absl::FailedPreconditionError("Synchronize: not while operations are recorded"));
  if (status_.ok()) {
    UseDevice();
    cudaError_t error = cudaEventRecord(synchronized_.get(), stream());
    if (error == cudaSuccess) error = AwaitEvent(synchronized_.get());
    if (error != cudaSuccess) NoteStreamError(error);
  }
  if (status_.ok()) {
    staging_->Deliver();
  } else {
    staging_->Forget();
  }
  return status_;
}

absl::Status CudaOps::status() const {
  if (!status_.ok() || recording_) return status_;
  UseDevice();
  const cudaError_t state = cudaStreamQuery(stream());
  if (state == cudaErrorNotReady) {
    cudaGetLastError();  // No error to remember.
  } else if (state != cudaSuccess) {
    NoteStreamError(state);
  }
  return status_;
}

absl::Status CudaOps::Await(const uint32_t* word, uint32_t value, int32_t milliseconds) {
  constexpr int kLooksAtTheStream = 16;  // One in so many looks: it costs a microsecond, and the word is in our cache.
  UseDevice();
  Patience patience(absl::Milliseconds(milliseconds));
  for (int look = 0; status_.ok() && !recording_; ++look) {
    if (__atomic_load_n(word, __ATOMIC_ACQUIRE) >= value) break;
    if (look % kLooksAtTheStream == 0) {
      const cudaError_t state = cudaStreamQuery(stream());
      if (state == cudaSuccess) break;
      if (state != cudaErrorNotReady) NoteStreamError(state);
      cudaGetLastError();
    }
    if (!patience.Pause()) {
      return absl::DeadlineExceededError(absl::StrCat("CUDA device ", device_.ordinal,
                                                      ": work is still under way after ", milliseconds,
                                                      " ms, the newest being ", newest_));
    }
  }
  return status_;
}

void CudaOps::Rehearse(const std::function<void()>& enqueue) {
  CHECK(!recording_);
  gemm_->BeginRehearsal();
  enqueue();
  UseDevice();
  Note(gemm_->EndRehearsal());
}

absl::StatusOr<std::unique_ptr<Program>> CudaOps::Record(const std::function<void()>& enqueue, const int32_t* proceed) {
  CHECK(!recording_);
  RETURN_IF_ERROR(status());
  UseDevice();
  recording_ = true;
  absl::StatusOr<std::unique_ptr<RecordedGraph>> graph = RecordedGraph::Record(stream(), proceed, [&] {
    enqueue();
    return status_;
  });
  recording_ = false;
  // Nothing has run, so a failed recording leaves the device as it was.
  if (!absl::IsUnavailable(status_)) status_ = absl::OkStatus();
  if (!graph.ok())
    return absl::Status(graph.status().code(), absl::StrCat("while recording: ", graph.status().message()));
  return std::make_unique<CudaProgram>(*this, *std::move(graph));
}

void CudaOps::AdvanceBlocks(const BlockStep& step) {
  Enqueue("AdvanceBlocks", [&] { return LaunchAdvanceBlocks(step, stream()); });
}

void CudaOps::BeginStep(const StepLayout& /*layout*/) {
  angles_.BeginStep();
  attention_->BeginStep();
}

void CudaOps::Embed(const int32_t* ids, ConstMatrix table, int64_t first_id, Matrix out) {
  CHECK(table.cols == out.cols);
  Enqueue("Embed", [&] { return LaunchLookUp(ids, table, first_id, out, stream()); });
}

void CudaOps::RmsNorm(ConstMatrix x, NormGain gain, float epsilon, Matrix out) {
  CHECK(SameShape(x, out) && x.cols <= kNormColumnsMax);
  Enqueue("RmsNorm", [&] { return LaunchRmsNorm(x, gain, epsilon, out, stream()); });
}

void CudaOps::AddRmsNorm(ConstMatrix y, NormGain gain, float epsilon, Matrix x, Matrix out) {
  CHECK(SameShape(y, x) && SameShape(x, out) && x.cols <= kNormColumnsMax);
  Enqueue("AddRmsNorm", [&] { return LaunchAddRmsNorm(y, gain, epsilon, x, out, stream()); });
}

void CudaOps::AddNormed(ConstMatrix y, NormGain gain, float epsilon, Matrix x) {
  CHECK(SameShape(y, x) && x.cols <= kNormColumnsMax);
  Enqueue("AddNormed", [&] { return LaunchAddNormed(y, gain, epsilon, x, stream()); });
}

void CudaOps::Scale(const float* factor, Matrix x) {
  Enqueue("Scale", [&] { return LaunchScale(factor, x, stream()); });
}

void CudaOps::AddRmsNormTo(const int32_t* rows, ConstMatrix y, float epsilon, Matrix x) {
  CHECK(SameShape(y, x) && x.cols <= kNormColumnsMax);
  Enqueue("AddRmsNormTo", [&] { return LaunchAddRmsNormTo(rows, y, epsilon, x, stream()); });
}

void CudaOps::AddBias(const float* bias, Matrix x) {
  Enqueue("AddBias", [&] { return LaunchAddBias(bias, x, stream()); });
}

void CudaOps::GatedMul(Activation activation, ConstMatrix gate_up, Matrix out) {
  CHECK(gate_up.cols == 2 * out.cols && gate_up.rows == out.rows && gate_up.dtype == out.dtype);
  Enqueue("GatedMul", [&] { return LaunchGatedMul(activation, gate_up, out, stream()); });
}

void CudaOps::ScatterRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  CHECK(x.cols == out.cols && x.dtype == out.dtype);
  Enqueue("ScatterRows", [&] { return LaunchScatter(x, rows, out, stream()); });
}

void CudaOps::Route(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, int32_t* experts,
                    float* weights) {
  CheckRouting(layout, logits, rule, activation_);
  Enqueue("Route", [&] { return LaunchRoute(layout, logits, rule, activation_, experts, weights, stream()); });
}

absl::StatusOr<std::unique_ptr<ExpertWeights>> CudaOps::PrepareExperts(const ExpertShape& shape) {
  RETURN_IF_ERROR(status());
  UseDevice();
  return experts_->Prepare(shape);
}

void CudaOps::ExpertMlp(ConstMatrix x, const ExpertWeights& weights, Activation activation, const int32_t* experts,
                        const float* expert_weights, int32_t k, bool add, Matrix out) {
  Enqueue("ExpertMlp", [&] { return experts_->Run({x, weights, activation, experts, expert_weights, k, add, out}); });
}

void CudaOps::GatherRows(ConstMatrix x, const int32_t* rows, Matrix out) {
  CHECK(x.cols == out.cols);
  Enqueue("GatherRows", [&] { return LaunchLookUp(rows, x, 0, out, stream()); });
}

void CudaOps::RotateAndCache(const StepLayout& layout, const HeadTransform& transform, int32_t heads, int32_t kv_heads,
                             const KvLayer& cache, Matrix qkv) {
  CHECK(heads > 0 && kv_heads > 0 && qkv.rows == layout.rows && qkv.cols % (heads + 2 * kv_heads) == 0);
  const int64_t head_size = qkv.cols / (heads + 2 * kv_heads);
  CHECK(head_size <= kRotatedHeadSizeMax);
  const RopePairs pairs = PairsOf(transform.rope, head_size);
  CHECK(cache.keys.cols == kv_heads * head_size && cache.values.cols == cache.keys.cols);
  CHECK(cache.keys.dtype == qkv.dtype && cache.values.dtype == qkv.dtype);
  Enqueue("RotateAndCache", [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const float2* const angles, angles_.Get(layout, transform.rope, pairs, stream()));
    const RotateArguments arguments = {.angles = angles,
                                       .pairs = pairs,
                                       .slots = layout.slots,
                                       .q_gain = transform.q_gain,
                                       .k_gain = transform.k_gain,
                                       .float_gain = transform.float_gain,
                                       .norm_values = transform.norm_values,
                                       .epsilon = transform.epsilon,
                                       .heads = heads,
                                       .kv_heads = kv_heads,
                                       .qkv = qkv,
                                       .cache = cache};
    return CudaStatus(LaunchRotateAndCache(arguments, stream()), "RotateAndCache");
  });
}

absl::StatusOr<std::unique_ptr<GemmWeight>> CudaOps::PrepareWeight(ConstMatrix host, WeightRole role) {
  RETURN_IF_ERROR(status());
  UseDevice();
  return gemm_->Prepare(host, role);
}

void CudaOps::Gemm(ConstMatrix x, const GemmWeight& weight, Matrix out) {
  CHECK(x.cols == weight.in_features() && out.cols == weight.out_features() && x.rows == out.rows);
  Enqueue("Gemm", [&] { return gemm_->Multiply(x, weight, out); });
}

void CudaOps::Attention(const StepLayout& layout, ConstMatrix q, int32_t heads, int32_t kv_heads,
                        const AttentionRule& rule, const KvLayer& cache, Matrix out) {
  CHECK(heads % kv_heads == 0 && q.cols % heads == 0 && q.rows == layout.rows && SameShape(q, out));
  Enqueue("Attention", [&] { return attention_->Run(stream(), layout, q, heads, kv_heads, rule, cache, out); });
}

void CudaOps::Candidates(ConstMatrix hidden, const GemmWeight& weight, const VocabularyShard& shard,
                         const CandidateBatch& batch, int32_t top_count, Candidate* out, TopLogit* top) {
  CHECK(hidden.cols == weight.in_features() && top_count >= 0 && top_count <= kTopLogitsMax);
  const CandidatesArguments arguments = {.rows = hidden.rows,
                                         .columns = weight.out_features(),
                                         .shard = shard,
                                         .batch = batch,
                                         .top_count = top_count,
                                         .out = out,
                                         .top = top};
  Enqueue("Candidates", [&]() -> absl::Status {
    ASSIGN_OR_RETURN(void* const workspace, candidates_memory_.Get(CandidatesWorkspaceBytes(arguments)));
    absl::Status product;
    const auto multiply = [&](int64_t first_column, Matrix logits) {
      product = gemm_->MultiplyRows(hidden, weight, first_column, logits);
      return product.ok() ? cudaSuccess : cudaErrorUnknown;
    };
    const cudaError_t error = RunCandidates(arguments, multiply, workspace, stream());
    return product.ok() ? CudaStatus(error, "Candidates") : product;
  });
}

void CudaOps::SoftEmbed(ConstMatrix hidden, const GemmWeight& weight, ConstMatrix table, const VocabularyShard& shard,
                        const SoftEmbedBatch& batch, Matrix out) {
  CHECK(hidden.cols == weight.in_features() && table.cols == out.cols && out.rows == batch.count);
  const SoftEmbedArguments arguments = {.rows = hidden.rows,
                                        .columns = weight.out_features(),
                                        .table = table,
                                        .shard = shard,
                                        .batch = batch,
                                        .out = out};
  Enqueue("SoftEmbed", [&]() -> absl::Status {
    ASSIGN_OR_RETURN(void* const workspace, candidates_memory_.Get(SoftEmbedWorkspaceBytes(arguments)));
    absl::Status product;
    const auto multiply = [&](int64_t first_column, Matrix logits) {
      product = gemm_->MultiplyRows(hidden, weight, first_column, logits);
      return product.ok() ? cudaSuccess : cudaErrorUnknown;
    };
    const cudaError_t error = RunSoftEmbed(arguments, multiply, workspace, stream());
    return product.ok() ? CudaStatus(error, "SoftEmbed") : product;
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ops>> MakeCudaOps(const CudaOpsOptions& options) { return CudaOps::Make(options); }

cudaStream_t CudaStreamOf(const Ops& ops) { return static_cast<const CudaOps&>(ops).stream(); }

GemmPlansReport CudaProductsOf(const Ops& ops) { return static_cast<const CudaOps&>(ops).products(); }

}  // namespace quicksilver
