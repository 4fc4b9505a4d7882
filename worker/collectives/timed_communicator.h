#pragma once

#include <functional>
#include <memory>

#include "absl/time/time.h"
#include "worker/collectives/communicator.h"

namespace quicksilver {

enum class CollectiveOperation { kAllReduce, kAllGather };

/// Passes everything on to `inner` and tells `observe`, in the calling thread, how long each operation took. Only for
/// communicators that work at once: elsewhere this would be the time to enqueue.
std::unique_ptr<Communicator> MakeTimedCommunicator(std::unique_ptr<Communicator> inner,
                                                    std::function<void(CollectiveOperation, absl::Duration)> observe);

}  // namespace quicksilver
