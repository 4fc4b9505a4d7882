#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace quicksilver::cuda_twin {

/// The pretended machine, for tests to set up. Thread-safe; what it sets holds for the whole process.
class TwinControl {
 public:
  /// Back to the defaults, which the environment may change (settings.h): one H100-like device of 8 GiB, work done at
  /// once, threads in ascending order, nothing failing, counters at zero. Allocations, streams and graphs stay.
  void Reset();

  void SetDeviceCount(int count);
  void SetTotalMemory(size_t bytes);  ///< Of each device.
  void SetComputeCapability(int major, int minor);
  void SetDriverVersion(int version);  ///< As cudaDriverGetVersion says it: 12040 is 12.4, 0 no driver.
  void SetPeerAccess(bool possible);   ///< Between any two devices.

  /// The order in which the threads and blocks of a kernel run: 0 ascending, 1 descending, others shuffled, and then up
  /// to three blocks run interleaved. A kernel whose result depends on it has a race.
  void SetThreadOrderSeed(uint64_t seed);

  /// Whether accesses of kernels that no barrier orders are found (on unless this says otherwise; race_check.h).
  void SetRaceCheck(bool check);

  /// Whether work waits in its stream until somebody waits for it (or 64 more are enqueued), instead of being done when
  /// it is enqueued. Shows results that are read too early and host memory that is reused too early.
  void SetDeferred(bool deferred);

  /// Backs cudaMalloc with memory that cudaIpcOpenMemHandle of another process can map.
  void SetSharedMemory(bool shared);

  /// A kernel that polls memory in vain this long is reported as a deadlock.
  void SetSpinSecondsMax(int seconds);

  /// Makes the nth next call (from 1) of `function` (e.g. "cudaMalloc"; "" = any) return `error`. Errors that break a
  /// context, such as cudaErrorIllegalAddress, come from all later calls too. "kernel" names the execution of a kernel:
  /// its error comes out of a later call, as on a device.
  void FailCall(const std::string& function, int nth, cudaError_t error);

  /// Since Reset(). "kernel": kernels run, those of graphs too. "cudaMalloc while capturing": those in a relaxed mode of
  /// a thread that is capturing a stream.
  uint64_t calls(const std::string& function) const;
  size_t allocated_bytes() const;                     ///< Device memory, all devices.
  size_t allocations() const;
  size_t streams() const;  ///< Living ones, and so on.
  size_t events() const;
  size_t graphs() const;  ///< Not those that belong to a conditional node.
  size_t graph_execs() const;
};

TwinControl& TwinDevice();

}  // namespace quicksilver::cuda_twin
