#include "tests/support/cuda_twin/twin_device.h"

#include "tests/support/cuda_twin/api_call.h"
#include "tests/support/cuda_twin/device.h"
#include "tests/support/cuda_twin/graph.h"
#include "tests/support/cuda_twin/memory.h"
#include "tests/support/cuda_twin/settings.h"
#include "tests/support/cuda_twin/stream.h"

namespace quicksilver::cuda_twin {

TwinControl& TwinDevice() {
  static TwinControl control;
  return control;
}

void TwinControl::Reset() {
  cuda_twin::SetDeferred(Environment().deferred);
  SetDeviceSettings({});
  SetTotalBytes(0);
  SetSharedBacking(false);
  Execution().thread_order_seed = Environment().thread_order_seed;
  Execution().spin_seconds_max = 60;
  Execution().race_check = true;
  ResetCalls();
}

void TwinControl::SetDeviceCount(int count) {
  DeviceSettings settings = GetDeviceSettings();
  settings.count = count;
  SetDeviceSettings(settings);
}

void TwinControl::SetComputeCapability(int major, int minor) {
  DeviceSettings settings = GetDeviceSettings();
  settings.major = major;
  settings.minor = minor;
  SetDeviceSettings(settings);
}

void TwinControl::SetPeerAccess(bool possible) {
  DeviceSettings settings = GetDeviceSettings();
  settings.peer_access = possible;
  SetDeviceSettings(settings);
}

void TwinControl::SetDriverVersion(int version) {
  DeviceSettings settings = GetDeviceSettings();
  settings.driver = version;
  SetDeviceSettings(settings);
}

void TwinControl::SetTotalMemory(size_t bytes) { SetTotalBytes(bytes); }
void TwinControl::SetThreadOrderSeed(uint64_t seed) { Execution().thread_order_seed = seed; }
void TwinControl::SetRaceCheck(bool check) { Execution().race_check = check; }
void TwinControl::SetDeferred(bool deferred) { cuda_twin::SetDeferred(deferred); }
void TwinControl::SetSharedMemory(bool shared) { SetSharedBacking(shared); }
void TwinControl::SetSpinSecondsMax(int seconds) { Execution().spin_seconds_max = seconds; }
void TwinControl::FailCall(const std::string& function, int nth, cudaError_t error) {
  PlanFailure(function, nth, error);
}

uint64_t TwinControl::calls(const std::string& function) const { return CallsCount(function); }
size_t TwinControl::allocated_bytes() const { return AllocatedBytes(); }
size_t TwinControl::allocations() const { return AllocationsCount(); }
size_t TwinControl::streams() const { return StreamsCount(); }
size_t TwinControl::events() const { return EventsCount(); }
size_t TwinControl::graphs() const { return GraphsCount(); }
size_t TwinControl::graph_execs() const { return GraphExecsCount(); }

}  // namespace quicksilver::cuda_twin
