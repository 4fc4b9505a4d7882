#pragma once

#include "absl/status/status.h"
#include "common/exit_codes.h"

namespace quicksilver {

/// The exit code of a rank that ends with `status`.
inline ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kOutOfRange:  // A setting that does not fit the model.
      return kExitUsage;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kFailedPrecondition:
      return kExitModel;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
      return kExitGroupLost;
    default:
      return kExitInternal;
  }
}

/// What a rank tells its launcher, which keeps count of it and treats it as kExitGroupLost, when its own device has
/// failed.
inline constexpr int kExitDeviceFailed = 64;

/// Restarting changes nothing: a person has to.
inline bool IsFinal(int exit_code) {
  return exit_code == kExitUsage || exit_code == kExitModel || exit_code == kExitBind;
}

}  // namespace quicksilver
