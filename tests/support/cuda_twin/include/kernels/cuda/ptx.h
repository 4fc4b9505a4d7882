#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cmath>
#include <cstdint>

#include "tests/support/cuda_twin/execution.h"
#include "tests/support/cuda_twin/graph_condition.h"

namespace quicksilver {

// What the functions of the real kernels/cuda/ptx.h do, on a CPU. The real one says what each means.

inline unsigned char* SharedMemory() { return cuda_twin::current_thread->shared_memory; }

inline void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { cuda_twin::WarpMmaBf16(d, a, b); }

inline void LoadMatrix4(uint32_t (&r)[4], const void* shared_row) { cuda_twin::WarpLoadMatrix4(r, shared_row, false); }

inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* shared_row) {
  cuda_twin::WarpLoadMatrix4(r, shared_row, true);
}

inline void CopyAsync16(void* shared, const void* global, bool valid) { cuda_twin::StartCopy16(shared, global, valid); }

inline void CopyAsyncCommit() { cuda_twin::CommitCopies(); }

template <int kGroups>
void CopyAsyncWait() {
  cuda_twin::WaitForCopies(kGroups);
}

inline float Exp2Approximate(float x) {
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;  // A NaN stays one.
}

inline uint32_t LoadAcquireSystem(const uint32_t* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
inline void StoreReleaseSystem(uint32_t* flag, uint32_t value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
inline uint32_t LoadAcquireDevice(const uint32_t* flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
inline void StoreReleaseDevice(uint32_t* flag, uint32_t value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }

// Kernels of one stream never overlap here.
inline void DependencyWait() {}
inline void DependencyLaunch() {}

inline void SetLoopContinues(cudaGraphConditionalHandle handle, bool continues) {
  cuda_twin::SetGraphCondition(handle, continues ? 1u : 0u);
}

inline uint64_t GlobalNanoseconds() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

inline void SpinPause() { cuda_twin::Pause(); }

}  // namespace quicksilver
