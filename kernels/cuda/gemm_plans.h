#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/gemm_kernels.h"
#include "kernels/cuda/gemm_memory.h"
#include "kernels/cuda/gemm_options.h"
#include "kernels/cuda/gemm_problem.h"

namespace quicksilver {

/// How one product is done.
struct GemmPlan {
  GemmAlgorithm algorithm;
  float microseconds = 0.0f;  ///< Measured.
};

/// Chooses algorithms by running them. A library of matrix products promises nothing about the bits of a row in batches
/// of different sizes, so what deterministic mode promises is measured: products of numbers that cancel, which leave
/// nothing but rounding errors, must come out bit for bit as in the batch of small_rows, in every row and column of the
/// output, twice. In either mode sums of ones must be what they are: an algorithm may drop the last columns where they
/// are no whole tile. Algorithms that agree with each other form a class, and a family uses one class: that which
/// stands highest in the library's advice for the two judged batches together, or, if measured, the faster one there.
/// Within the class, and without deterministic mode in all that is advised, the fastest algorithm is taken.
///
/// Small batches are bound by memory, and the library may split sums for them; large batches may split them in the same
/// way only, or have to be cut. So the promise costs time, and `choices` says how much.
class GemmPlans {
 public:
  /// `library` outlives this.
  static absl::StatusOr<std::unique_ptr<GemmPlans>> Make(const GemmLibrary& library, const GemmPlansOptions& options);
  ~GemmPlans();

  /// The plan, which is made now if there is none yet: that takes up to a second and a few hundred MiB of device memory
  /// for a while; it may happen while a stream is being captured. `whole_out`: features of the weight that shape.out is
  /// a slice of. Null: no algorithm (that agrees) can do this many rows; small_rows it can. FailedPrecondition: nor can
  /// small_rows be done.
  absl::StatusOr<const GemmPlan*> Plan(const GemmShape& shape, int64_t whole_out, int64_t rows);

  /// Whether the library has advice for batches of small_rows and of large_rows.
  bool Supports(const GemmShape& shape) const;

  /// Whether Plan() need not try anything.
  bool Has(const GemmShape& shape, int64_t whole_out, int64_t rows) const;

  /// Frees what Plan() has used. Not while a stream is being captured.
  void ReleaseProbeMemory();

  GemmPlansReport report() const;

 private:
  struct Scratch;
  struct Trial;
  struct Family;
  using PlanKey = std::tuple<GemmShape, int64_t, int64_t>;

  GemmPlans(const GemmLibrary& library, const GemmPlansOptions& options);

  absl::StatusOr<Family*> FamilyOf(const GemmShape& shape, int64_t whole_out);
  absl::StatusOr<std::unique_ptr<Family>> Judge(const GemmShape& shape);
  const Trial* ChooseAnchor(const std::vector<Trial>& small, const std::vector<Trial>& large) const;
  absl::StatusOr<std::unique_ptr<GemmPlan>> Choose(const GemmShape& shape, int64_t rows, Family* family);
  std::vector<GemmAlgorithm> Advise(const GemmShape& shape, int64_t rows) const;

  absl::Status Reserve(const GemmShape& shape, int64_t rows);
  absl::StatusOr<std::vector<Trial>> Try(const GemmShape& whole, int64_t rows,
                                         const std::vector<GemmAlgorithm>& algorithms);
  absl::Status Fill(const GemmShape& shape, int64_t rows, int round, const ProbeRows& x_rows,
                    const ProbeRows& weight_rows);
  absl::Status Probe(const GemmShape& shape, int64_t rows, int round, bool again, std::vector<Trial>& trials);
  absl::Status CheckSums(const GemmShape& shape, int64_t rows, std::vector<Trial>& trials);
  absl::StatusOr<std::vector<RowDigest>> Digest(const GemmShape& shape, int64_t rows, int round, Trial& trial);
  absl::Status Measure(const GemmShape& shape, int64_t rows, Trial& trial);
  absl::Status Run(const GemmShape& shape, int64_t rows, int round, Trial& trial);
  GemmOperands Operands(const GemmShape& shape, int round) const;

  const GemmLibrary& library_;
  GemmPlansOptions options_;
  int64_t sources_;  // Different rows of x in a probe.
  size_t flush_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  CudaEvent begin_, end_;
  std::unique_ptr<Scratch> scratch_;
  std::map<std::pair<GemmShape, int64_t>, std::unique_ptr<Family>> families_;  // By shape without `out`, and whole_out.
  std::map<PlanKey, std::unique_ptr<GemmPlan>> plans_;                         // Null: refused.
  GemmPlansReport report_;
};

}  // namespace quicksilver
