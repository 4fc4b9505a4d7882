#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/collectives/communicator.h"

namespace quicksilver {

struct NcclOptions {
  int rank = 0;
  int size = 1;
  std::string library;  ///< Path of NCCL; empty: libnccl.so.2.
  /// True: gather, then add in rank order with a kernel of our own: the contract's bits, tp times the bytes. False:
  /// NCCL's all-reduce, whose order depends on its version, the machine and the message: deterministic() is false.
  bool rank_order = true;
  absl::Duration init_timeout = absl::Seconds(120);  ///< The other ranks may still be starting.
  absl::Duration step_timeout = absl::Seconds(5);    ///< How long Synchronize() waits: for a whole step.
  absl::Duration abort_budget = absl::Seconds(2);    ///< Then the process ends itself.
  size_t piece_bytes = 1 << 20;  ///< Of a sum in rank order: a message is gathered so many bytes at a time.
};

/// The data plane over NCCL, for matrices in device memory (f32, bf16), on the current device and on `stream`, whose
/// owner outlives this. The communicator is non-blocking and every wait has a bound: a failure is found by polling,
/// then NCCL is aborted, and a process that cannot finish that within abort_budget ends itself with kExitGroupLost.
/// Operations may be captured in a graph; see BeforeAbort(). The leader makes NCCL's unique id and sends it over
/// `control`. NotFound, FailedPrecondition: no usable library. Unavailable: the group did not form in time, or NCCL
/// says why not.
absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(const NcclOptions& options, cudaStream_t stream,
                                                                   ControlChannel& control);

}  // namespace quicksilver
