#include "kernels/cuda/step_angles.h"

#include "common/status_macros.h"
#include "kernels/cuda/cuda_error.h"

namespace quicksilver {

absl::StatusOr<const float2*> StepAngles::Get(const StepLayout& layout, const RopeParameters& rope,
                                              const RopePairs& pairs, cudaStream_t stream) {
  const Kind kind = {rope.theta, rope.full_precision, pairs.pairs, pairs.width};
  if (kind == kind_) return angles_;
  const size_t bytes = static_cast<size_t>(layout.rows) * static_cast<size_t>(pairs.pairs) * sizeof(float2);
  ASSIGN_OR_RETURN(void* const memory, memory_.Get(bytes));
  angles_ = static_cast<float2*>(memory);
  const DType rounding = rope.full_precision ? DType::kF32 : activation_;
  RETURN_IF_ERROR(
      CudaStatus(LaunchRopeAngles(layout.positions, layout.rows, rope.theta, pairs, rounding, angles_, stream),
                 "angles of RotateAndCache"));
  kind_ = kind;
  return angles_;
}

}  // namespace quicksilver
