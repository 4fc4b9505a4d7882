#pragma once

#include <string>

#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace quicksilver::cuda_twin {

/// Counts a call and returns the error that it must fail with: a planned one, or the one that broke the context.
cudaError_t EnterCall(const char* function);

/// Remembers `error` for cudaGetLastError of this thread, and for good when it breaks the context. Returns it.
cudaError_t LeaveCall(cudaError_t error);

/// The body of an API function.
template <typename Body>
cudaError_t Api(const char* function, Body&& body) {
  cudaError_t error = EnterCall(function);
  if (error == cudaSuccess) error = body();
  return LeaveCall(error);
}

/// Breaks the context: all later calls fail.
void BreakContext(cudaError_t error);
cudaError_t BrokenContext();

int CurrentDevice();

void ResetCalls();
void PlanFailure(const std::string& function, int nth, cudaError_t error);
uint64_t CallsCount(const std::string& function);

}  // namespace quicksilver::cuda_twin
