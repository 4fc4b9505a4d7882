#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/ops.h"
#include "worker/collectives/communicator.h"
#include "worker/options.h"
#include "worker/service/group_service.h"

namespace quicksilver {

/// The links of one rank to the others.
struct Links {
  std::unique_ptr<Communicator> ranks;
  std::unique_ptr<ControlChannel> control;
};

/// `cuda`: the operations of a rank on a GPU, whose data plane then runs between devices and in order with them; null
/// on a processor. Meets the other ranks at --group-address (rank 0 serves it meanwhile), compares agreements and
/// connects. FailedPrecondition: the ranks disagree. DeadlineExceeded: one is missing. Aborted: another epoch.
/// Unavailable: one was lost on the way, or the address cannot be bound.
absl::StatusOr<Links> FormGroup(const WorkerOptions& options, const Agreement& agreement, Ops* cuda);

}  // namespace quicksilver
