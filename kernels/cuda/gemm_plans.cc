#include "kernels/cuda/gemm_plans.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/device_workspace.h"
#include "kernels/host_float.h"

namespace quicksilver {
namespace {

constexpr int kAdvisedMax = 16;
constexpr int kRounds = 2;  // Of probing, with other numbers, places and strides.
/// A measured anchor must be this much faster than one advised earlier: far above what two measurements on idle devices
/// differ by, so that processes mostly agree.
constexpr double kMuchFaster = 0.85;
/// Timing of one algorithm ends when so much has gone by.
constexpr float kTimedMillisecondsMax = 100.0f;
/// Every different row of x stands in so many places of the smallest batch that is tried; other rows of the weight
/// begin again after kColumnSources.
constexpr int64_t kPlaces = 4;
constexpr int64_t kColumnSources = kGemmOutUnit;
/// Strides of the second round are longer by this: 16-byte aligned in every type.
constexpr int64_t kStrideGap = 64;
constexpr float kNever = std::numeric_limits<float>::infinity();

ProbeType ProbeTypeOf(GemmArithmetic arithmetic) {
  switch (arithmetic) {
    case GemmArithmetic::kF32:
      return ProbeType::kF32;
    case GemmArithmetic::kBf16:
      return ProbeType::kBf16;
    default:
      return ProbeType::kE4m3;
  }
}

const char* NameOf(GemmArithmetic arithmetic) {
  switch (arithmetic) {
    case GemmArithmetic::kF32:
      return "f32";
    case GemmArithmetic::kBf16:
      return "bf16";
    case GemmArithmetic::kFp8Scaled:
      return "scaled e4m3";
    default:
      return "e4m3";
  }
}

/// Of the bounds in `options`, divided by `divisor`.
GemmShape Probed(GemmShape shape, int64_t rows, const GemmPlansOptions& options, int64_t divisor) {
  const int64_t row_bytes = shape.in * GemmElementBytes(shape.arithmetic);
  const int64_t by_weight = options.probe_weight_bytes_max / divisor / row_bytes;
  const int64_t fitting = std::min(by_weight, options.probe_outputs_max / divisor / rows);
  shape.out = std::min(shape.out, std::max(fitting / kGemmOutUnit * kGemmOutUnit, kGemmOutUnit));
  return shape;
}

void Fold(uint64_t value, uint64_t& digest) {
  digest = (digest ^ value) * 0x9E3779B97F4A7C15u;
  digest ^= digest >> 29;
}

/// While it lives, this thread may allocate and wait although a stream is being captured.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

/// Memory of probes.
struct GemmPlans::Scratch {
  DeviceWorkspace memory{"trying out matrix products"};
  // Where things are, of the last Reserve().
  char* weight = nullptr;
  char* x = nullptr;
  char* out = nullptr;
  float* weight_scales = nullptr;
  float* x_scales = nullptr;
  RowDigest* digests = nullptr;
  char* workspace = nullptr;
  char* flush = nullptr;
  size_t out_bytes = 0;
};

/// What one algorithm did with one number of rows.
struct GemmPlans::Trial {
  GemmAlgorithm algorithm;
  bool ran = true;                            // The library accepts it.
  bool consistent = true;                     // Equal rows gave equal bits in all places and every time.
  bool correct = true;                        // Sums of ones are what they have to be.
  std::vector<std::optional<uint64_t>> bits;  // [kRounds * sources]; none: that row was not in the batch.
  float microseconds = kNever;

  bool Agrees(const std::vector<std::optional<uint64_t>>& other) const {
    for (size_t i = 0; i < bits.size(); ++i) {
      if (bits[i] && other[i] && *bits[i] != *other[i]) return false;
    }
    return ran && correct && consistent;
  }
};

/// Products that have to agree: of slices of weights of one size, in batches of any size.
struct GemmPlans::Family {
  std::vector<std::optional<uint64_t>> bits;  // Of every source row.
  std::vector<GemmAlgorithm> algorithms;      // Known to give them somewhere.
};

GemmPlans::GemmPlans(const GemmLibrary& library, const GemmPlansOptions& options)
    : library_(library), options_(options), sources_(std::max<int64_t>(options.small_rows / kPlaces, 1)) {
  CHECK(sources_ % 5 != 0);  // The probe walks the sources in steps of five.
}

GemmPlans::~GemmPlans() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::StatusOr<std::unique_ptr<GemmPlans>> GemmPlans::Make(const GemmLibrary& library,
                                                           const GemmPlansOptions& options) {
  std::unique_ptr<GemmPlans> plans(new GemmPlans(library, options));
  int device = 0, l2_bytes = 0;
  RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "cudaGetDevice"));
  RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device), "cudaDeviceGetAttribute"));
  if (options.cold_cache) plans->flush_bytes_ = 2 * static_cast<size_t>(l2_bytes);
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&plans->stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"));
  ASSIGN_OR_RETURN(plans->begin_, MakeCudaEvent(cudaEventDefault));
  ASSIGN_OR_RETURN(plans->end_, MakeCudaEvent(cudaEventDefault));
  return plans;
}

void GemmPlans::ReleaseProbeMemory() { scratch_.reset(); }

bool GemmPlans::Has(const GemmShape& shape, int64_t whole_out, int64_t rows) const {
  return plans_.contains({shape, whole_out, rows});
}

GemmPlansReport GemmPlans::report() const {
  GemmPlansReport report = report_;
  for (const auto& [key, family] : families_) {
    for (const auto& bits : family->bits) Fold(bits.value_or(0), report.digest);
  }
  return report;
}

absl::StatusOr<const GemmPlan*> GemmPlans::Plan(const GemmShape& shape, int64_t whole_out, int64_t rows) {
  CHECK(rows > 0 && shape.out % kGemmOutUnit == 0 &&
        shape.in * GemmElementBytes(shape.arithmetic) % kGemmAlignmentBytes == 0);
  const PlanKey key(shape, whole_out, rows);
  if (const auto it = plans_.find(key); it != plans_.end()) return it->second.get();
  const RelaxedCapture relaxed;
  ASSIGN_OR_RETURN(Family* const family, FamilyOf(shape, whole_out));
  ASSIGN_OR_RETURN(std::unique_ptr<GemmPlan> chosen, Choose(shape, rows, family));
  const std::unique_ptr<GemmPlan>& plan = plans_[key] = std::move(chosen);
  (plan == nullptr ? report_.rows_refused : report_.plans) += 1;
  return plan.get();
}

bool GemmPlans::Supports(const GemmShape& shape) const {
  return !Advise(shape, options_.small_rows).empty() && !Advise(shape, options_.large_rows).empty();
}

std::vector<GemmAlgorithm> GemmPlans::Advise(const GemmShape& shape, int64_t rows) const {
  return library_.Advise(shape, rows, options_.workspace_bytes, kAdvisedMax);
}

absl::StatusOr<GemmPlans::Family*> GemmPlans::FamilyOf(const GemmShape& shape, int64_t whole_out) {
  if (!options_.deterministic) return nullptr;
  GemmShape any_slice = shape;
  any_slice.out = 0;
  const std::pair<GemmShape, int64_t> key(any_slice, whole_out);
  if (const auto known = families_.find(key); known != families_.end()) return known->second.get();
  GemmShape whole = shape;
  whole.out = RoundUpTo(whole_out, kGemmOutUnit);
  ASSIGN_OR_RETURN(std::unique_ptr<Family> family, Judge(whole));
  ++report_.families;
  return (families_[key] = std::move(family)).get();
}

namespace {

void AddNew(const std::vector<GemmAlgorithm>& from, std::vector<GemmAlgorithm>& to) {
  for (const GemmAlgorithm& algorithm : from) {
    if (std::find(to.begin(), to.end(), algorithm) == to.end()) to.push_back(algorithm);
  }
}

/// The least time of those that agree with `bits`; infinity: none.
template <typename Trial, typename Bits>
float FastestThatAgrees(const std::vector<Trial>& trials, const Bits& bits) {
  float fastest = kNever;
  for (const Trial& trial : trials) {
    if (trial.Agrees(bits)) fastest = std::min(fastest, trial.microseconds);
  }
  return fastest;
}

/// How many were advised before the first that agrees with `bits`.
template <typename Trial, typename Bits>
int FirstThatAgrees(const std::vector<Trial>& trials, const Bits& bits) {
  const auto agrees = [&](const Trial& trial) { return trial.Agrees(bits); };
  return static_cast<int>(std::find_if(trials.begin(), trials.end(), agrees) - trials.begin());
}

template <typename Trial>
float Fastest(const std::vector<Trial>& trials) {
  float fastest = kNever;
  for (const Trial& trial : trials) {
    if (trial.ran && trial.correct) fastest = std::min(fastest, trial.microseconds);
  }
  return fastest;
}

}  // namespace

/// Of `small`; both in the order of advice for their number of rows. Null: none is consistent.
const GemmPlans::Trial* GemmPlans::ChooseAnchor(const std::vector<Trial>& small,
                                                const std::vector<Trial>& large) const {
  const float chunks = static_cast<float>(options_.large_rows) / static_cast<float>(options_.small_rows);
  const Trial* chosen = nullptr;
  double least = 0.0;
  for (const Trial& trial : small) {
    if (!trial.Agrees(trial.bits)) continue;
    double score = FirstThatAgrees(small, trial.bits) + FirstThatAgrees(large, trial.bits);
    if (options_.anchor == GemmAnchor::kMeasured) {
      const float small_time = FastestThatAgrees(small, trial.bits);
      const float large_time = std::min(FastestThatAgrees(large, trial.bits), small_time * chunks);
      score = small_time / Fastest(small) + large_time / Fastest(large);
    }
    const double margin = options_.anchor == GemmAnchor::kMeasured ? kMuchFaster : 1.0;
    if (chosen != nullptr && score >= margin * least) continue;
    chosen = &trial;
    least = score;
  }
  return chosen;
}

absl::StatusOr<std::unique_ptr<GemmPlans::Family>> GemmPlans::Judge(const GemmShape& shape) {
  const std::vector<GemmAlgorithm> for_small = Advise(shape, options_.small_rows);
  const std::vector<GemmAlgorithm> for_large = Advise(shape, options_.large_rows);
  std::vector<GemmAlgorithm> small_order = for_small, large_order = for_large;
  AddNew(for_large, small_order);
  AddNew(for_small, large_order);
  ASSIGN_OR_RETURN(const std::vector<Trial> small, Try(shape, options_.small_rows, small_order));
  ASSIGN_OR_RETURN(const std::vector<Trial> large, Try(shape, options_.large_rows, large_order));
  const Trial* const anchor = ChooseAnchor(small, large);
  if (anchor == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuBLASLt ", library_.version(), " has no algorithm that treats all rows alike for products of ",
                     shape.in, " to ", shape.out, " features: ", small_order.size(), " were tried"));
  }
  auto family = std::make_unique<Family>();
  family->bits = anchor->bits;
  for (const auto* trials : {&small, &large}) {
    for (const Trial& trial : *trials) {
      if (trial.Agrees(family->bits)) AddNew({trial.algorithm}, family->algorithms);
    }
  }
  return family;
}

absl::StatusOr<std::unique_ptr<GemmPlan>> GemmPlans::Choose(const GemmShape& shape, int64_t rows, Family* family) {
  std::vector<GemmAlgorithm> algorithms = Advise(shape, rows);
  if (family != nullptr) {
    AddNew(family->algorithms, algorithms);
  } else if (algorithms.empty()) {  // It may still be able to.
    algorithms = Advise(shape, options_.small_rows);
    AddNew(Advise(shape, options_.large_rows), algorithms);
  }
  ASSIGN_OR_RETURN(const std::vector<Trial> trials, Try(shape, rows, algorithms));
  const Trial* chosen = nullptr;
  const Trial* refused = nullptr;
  const auto keep_faster = [](const Trial& trial, const Trial*& fastest) {
    if (fastest == nullptr || trial.microseconds < fastest->microseconds) fastest = &trial;
  };
  for (const Trial& trial : trials) {
    if (!trial.ran) continue;
    ++report_.algorithms_tried;
    const bool agrees = family == nullptr ? trial.correct : trial.Agrees(family->bits);
    keep_faster(trial, agrees ? chosen : refused);
    if (!agrees) ++report_.algorithms_refused;
    if (!trial.correct) ++report_.algorithms_wrong;
    if (agrees && family != nullptr) AddNew({trial.algorithm}, family->algorithms);
  }
  if (chosen == nullptr && family == nullptr && rows == options_.small_rows) {
    return absl::FailedPreconditionError(absl::StrCat("cuBLASLt ", library_.version(), " cannot multiply ", rows,
                                                      " rows, ", shape.in, " to ", shape.out, " features"));
  }
  absl::StrAppend(&report_.choices, rows, " x ", shape.in, " to ", shape.out, ", ", NameOf(shape.arithmetic), " to ",
                  shape.out_type == DType::kF32 ? "f32: " : "bf16: ");
  if (chosen == nullptr) {
    report_.choices += "in parts";
  } else {
    absl::StrAppendFormat(&report_.choices, "%.1f us (%s)", chosen->microseconds, library_.Describe(chosen->algorithm));
  }
  if (refused != nullptr) {
    absl::StrAppendFormat(&report_.choices, ", refused %.1f us (%s)", refused->microseconds,
                          library_.Describe(refused->algorithm));
  }
  report_.choices += "\n";
  if (chosen == nullptr) return nullptr;
  return std::make_unique<GemmPlan>(GemmPlan{chosen->algorithm, chosen->microseconds});
}

absl::Status GemmPlans::Reserve(const GemmShape& shape, int64_t rows) {
  const int64_t element = GemmElementBytes(shape.arithmetic);
  size_t end = 0;
  const auto place = [&end](int64_t bytes) {
    const size_t at = end;
    end = static_cast<size_t>(RoundUpTo(static_cast<int64_t>(end) + bytes, 256));
    return at;
  };
  const size_t weight = place(shape.out * shape.in * element), x = place(rows * (shape.in + kStrideGap) * element);
  const size_t out = place(rows * (shape.out + kStrideGap) * static_cast<int64_t>(ElementBytes(shape.out_type)));
  const size_t out_end = end;
  const size_t weight_scales = place(shape.out * 4), x_scales = place(rows * 4);
  const size_t digests = place(rows * static_cast<int64_t>(sizeof(RowDigest)));
  const size_t workspace = place(static_cast<int64_t>(options_.workspace_bytes));
  const size_t flush = place(static_cast<int64_t>(flush_bytes_));
  if (scratch_ == nullptr) scratch_ = std::make_unique<Scratch>();
  ASSIGN_OR_RETURN(void* const memory, scratch_->memory.Get(end));
  char* const base = static_cast<char*>(memory);
  scratch_->weight = base + weight;
  scratch_->x = base + x;
  scratch_->out = base + out;
  scratch_->out_bytes = out_end - out;
  scratch_->weight_scales = reinterpret_cast<float*>(base + weight_scales);
  scratch_->x_scales = reinterpret_cast<float*>(base + x_scales);
  scratch_->digests = reinterpret_cast<RowDigest*>(base + digests);
  scratch_->workspace = base + workspace;
  scratch_->flush = base + flush;
  return absl::OkStatus();
}

GemmOperands GemmPlans::Operands(const GemmShape& shape, int round) const {
  const int64_t gap = round % 2 == 0 ? 0 : kStrideGap;
  return {.x = scratch_->x,
          .x_stride = shape.in + gap,
          .x_scales = scratch_->x_scales,
          .weight = scratch_->weight,
          .weight_scales = scratch_->weight_scales,
          .out = scratch_->out,
          .out_stride = shape.out + gap};
}

absl::Status GemmPlans::Run(const GemmShape& shape, int64_t rows, int round, Trial& trial) {
  const absl::Status status = library_.Multiply(shape, rows, Operands(shape, round), trial.algorithm,
                                                scratch_->workspace, options_.workspace_bytes, stream_);
  if (!status.ok()) trial.ran = false;  // An error of the device shows up in the next wait.
  return absl::OkStatus();
}

absl::StatusOr<std::vector<GemmPlans::Trial>> GemmPlans::Try(const GemmShape& whole, int64_t rows,
                                                             const std::vector<GemmAlgorithm>& algorithms) {
  constexpr int64_t kDivisorMax = 64;
  GemmShape shape;
  absl::Status room;
  for (int64_t divisor = 1; divisor <= kDivisorMax; divisor *= 4) {  // Late plans may find little memory left.
    shape = Probed(whole, rows, options_, divisor);
    room = Reserve(shape, rows);
    if (!absl::IsResourceExhausted(room)) break;
  }
  RETURN_IF_ERROR(room);
  std::vector<Trial> trials(algorithms.size());
  for (size_t i = 0; i < trials.size(); ++i) {
    trials[i].algorithm = algorithms[i];
    trials[i].ran = shape.out == whole.out || library_.Supports(whole, rows, algorithms[i], options_.workspace_bytes);
    trials[i].bits.resize(static_cast<size_t>(kRounds * sources_));
  }
  RETURN_IF_ERROR(CheckSums(shape, rows, trials));
  for (int round = 0; round < kRounds; ++round) RETURN_IF_ERROR(Probe(shape, rows, round, /*again=*/false, trials));
  for (Trial& trial : trials) {
    if (trial.ran) RETURN_IF_ERROR(Measure(shape, rows, trial));
  }
  RETURN_IF_ERROR(Probe(shape, rows, kRounds - 1, /*again=*/true, trials));
  return trials;
}

absl::Status GemmPlans::Fill(const GemmShape& shape, int64_t rows, int round, const ProbeRows& x_rows,
                             const ProbeRows& weight_rows) {
  const ProbeMatrix x = {.values = scratch_->x,
                         .type = ProbeTypeOf(shape.arithmetic),
                         .rows = rows,
                         .cols = shape.in,
                         .stride = Operands(shape, round).x_stride,
                         .scales = scratch_->x_scales};
  const ProbeMatrix weight = {.values = scratch_->weight,
                              .type = x.type,
                              .rows = shape.out,
                              .cols = shape.in,
                              .stride = shape.in,
                              .scales = scratch_->weight_scales};
  RETURN_IF_ERROR(CudaStatus(LaunchFillProbe(x, x_rows, stream_), "FillProbe"));
  return CudaStatus(LaunchFillProbe(weight, weight_rows, stream_), "FillProbe");
}

absl::StatusOr<std::vector<RowDigest>> GemmPlans::Digest(const GemmShape& shape, int64_t rows, int round,
                                                         Trial& trial) {
  const ConstMatrix out(scratch_->out, rows, shape.out, Operands(shape, round).out_stride, shape.out_type);
  std::vector<RowDigest> digests(static_cast<size_t>(rows));
  // What is not written stays NaN, and differs from what another algorithm writes there.
  RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(scratch_->out, 0xFF, scratch_->out_bytes, stream_), "cudaMemsetAsync"));
  RETURN_IF_ERROR(Run(shape, rows, round, trial));
  RETURN_IF_ERROR(CudaStatus(LaunchDigestRows(out, kColumnSources, scratch_->digests, stream_), "DigestRows"));
  RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(digests.data(), scratch_->digests, digests.size() * sizeof(RowDigest),
                                             cudaMemcpyDeviceToHost, stream_),
                             "cudaMemcpyAsync"));
  RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), "trying out a matrix product"));
  return digests;
}

absl::Status GemmPlans::Probe(const GemmShape& shape, int64_t rows, int round, bool again, std::vector<Trial>& trials) {
  const uint32_t seed = 0x5EED0000u + static_cast<uint32_t>(round);
  const ProbeRows x_rows = {.seed = seed, .sources = sources_, .step = 5, .shift = 7 * round, .alternate = true};
  RETURN_IF_ERROR(Fill(shape, rows, round, x_rows, {.seed = seed ^ 0xFFFFu, .sources = kColumnSources}));
  for (Trial& trial : trials) {
    if (!trial.ran) continue;
    ASSIGN_OR_RETURN(const std::vector<RowDigest> digests, Digest(shape, rows, round, trial));
    if (!trial.ran) continue;
    for (int64_t r = 0; r < rows; ++r) {
      std::optional<uint64_t>& bits = trial.bits[static_cast<size_t>(round * sources_ + ProbeSource(x_rows, r))];
      const RowDigest& digest = digests[static_cast<size_t>(r)];
      CHECK(bits || !again);
      if (!bits) bits = digest.bits;
      if (*bits != digest.bits || digest.differing != 0) trial.consistent = false;
    }
  }
  return absl::OkStatus();
}

/// Of numbers that cancel nobody sees that some are missing.
absl::Status GemmPlans::CheckSums(const GemmShape& shape, int64_t rows, std::vector<Trial>& trials) {
  RETURN_IF_ERROR(Fill(shape, rows, 0, {.ones = true}, {.sources = kColumnSources, .ones = true}));
  const bool wide = shape.out_type == DType::kF32;
  const float sum = static_cast<float>(shape.in), tail = static_cast<float>(std::min(shape.in, kProbeTail));
  for (Trial& trial : trials) {
    if (!trial.ran) continue;
    ASSIGN_OR_RETURN(const std::vector<RowDigest> digests, Digest(shape, rows, 0, trial));
    if (!trial.ran) continue;
    // All rows and columns being alike, these are all that there are.
    float floats[kColumnSources];
    uint16_t halves[kColumnSources];
    RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(wide ? static_cast<void*>(floats) : halves, scratch_->out,
                                               wide ? sizeof floats : sizeof halves, cudaMemcpyDeviceToHost, stream_),
                               "cudaMemcpyAsync"));
    RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(stream_), "trying out a matrix product"));
    for (int64_t c = 0; c < kColumnSources; ++c) {
      const float expected = c % 2 == 0 ? sum : tail;
      trial.correct &= wide ? floats[c] == expected : halves[c] == FloatToBf16(expected);
    }
    for (const RowDigest& digest : digests) {
      trial.correct &= digest.bits == digests.front().bits && digest.differing == 0;
    }
  }
  return absl::OkStatus();
}

absl::Status GemmPlans::Measure(const GemmShape& shape, int64_t rows, Trial& trial) {
  if (options_.timed_runs == 0) {
    trial.microseconds = 1.0f;
    return absl::OkStatus();
  }
  float elapsed = 0.0f;
  for (int run = 0; run < options_.warm_ups + options_.timed_runs; ++run) {
    if (flush_bytes_ > 0) {
      RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(scratch_->flush, 0, flush_bytes_, stream_), "cudaMemsetAsync"));
    }
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(begin_.get(), stream_), "cudaEventRecord"));
    RETURN_IF_ERROR(Run(shape, rows, kRounds - 1, trial));
    RETURN_IF_ERROR(CudaStatus(cudaEventRecord(end_.get(), stream_), "cudaEventRecord"));
    RETURN_IF_ERROR(CudaStatus(cudaEventSynchronize(end_.get()), "timing a matrix product"));
    float milliseconds = 0.0f;
    RETURN_IF_ERROR(CudaStatus(cudaEventElapsedTime(&milliseconds, begin_.get(), end_.get()), "cudaEventElapsedTime"));
    constexpr float kLeast = 1e-3f;  // Timers are coarse, and ratios of zeros are nothing.
    elapsed += milliseconds;
    const bool last = elapsed > kTimedMillisecondsMax;
    if (run < options_.warm_ups && !last) continue;
    trial.microseconds = std::min(trial.microseconds, std::max(milliseconds * 1e3f, kLeast));
    if (last) break;
  }
  return absl::OkStatus();
}

}  // namespace quicksilver
