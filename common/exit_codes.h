#pragma once

namespace quicksilver {

/// How every program of the project ends. A supervisor restarts 1 and 4; 2, 3 and 5 need a person.
enum ExitCode : int {
  kExitOk = 0,        ///< Done, or drained in order.
  kExitInternal = 1,  ///< A bug: an invariant is broken.
  kExitUsage = 2,     ///< Flags, environment or configuration file.
  kExitModel = 3,     ///< The checkpoint, the tokenizer, ranks that disagree, or a device that is missing or too small.
  kExitGroupLost = 4,  ///< A rank is missing, died or hangs; a sticky device error.
  kExitBind = 5,       ///< A port is in use or may not be bound.
};

}  // namespace quicksilver
