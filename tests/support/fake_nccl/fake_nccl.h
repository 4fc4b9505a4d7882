#pragma once

#include <atomic>

namespace quicksilver {

/// What the stand-in for NCCL shall do, for the whole process. Its collectives work between threads on memory that
/// hosts reach, in the order of the streams; failures are injected here.
struct FakeNcclControl {
  std::atomic<int> version{22809};
  std::atomic<int> unique_id_result{0};  ///< An ncclResult_t.
  std::atomic<int> init_polls{2};        ///< Times that a new communicator is "in progress"; -1: for ever.
  std::atomic<int> enqueue_polls{0};     ///< The same after every collective.
  std::atomic<int> async_result{0};      ///< Of a ready communicator.
  std::atomic<bool> abort_hangs{false};
  std::atomic<int> revokes{0}, aborts{0};  ///< Calls so far.
  std::atomic<void (*)()> on_abort{nullptr};

  void Reset() {
    version = 22809;
    unique_id_result = 0;
    init_polls = 2;
    enqueue_polls = 0;
    async_result = 0;
    abort_hangs = false;
    revokes = 0;
    aborts = 0;
    on_abort = nullptr;
  }
};

}  // namespace quicksilver

/// Exported by the library beside NCCL's own functions.
extern "C" quicksilver::FakeNcclControl* FakeNccl();
