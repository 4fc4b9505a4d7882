#pragma once

#include "worker/options.h"

namespace quicksilver {

/// Runs one rank of a group until it drains (SIGTERM or SIGINT) or its group is lost. Returns the exit code. A second
/// signal ends the process at once.
int RunRank(const WorkerOptions& options);

}  // namespace quicksilver
