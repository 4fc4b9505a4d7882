#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace quicksilver {

// The instructions that CUDA C++ has no name for. All inline PTX of the project is here, and every function has a twin
// of the same name in tests/support/cuda_twin/include/kernels/cuda/ptx.h that does the same on a CPU.

/// The block's dynamic shared memory, aligned to 128 bytes. As large as the launch asked for, and not initialised.
__device__ __forceinline__ unsigned char* SharedMemory() {
  extern __shared__ __align__(128) unsigned char quicksilver_shared_memory[];
  return quicksilver_shared_memory;
}

/// The address of shared memory as the shared-memory instructions take it.
__device__ __forceinline__ uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/// d += a * b for a warp: a is 16 x 16 and row-major, b is 16 x 8 and column-major, both bf16; d is 16 x 8 floats. With
/// g = lane / 4 and t = lane % 4, a lane holds (two bf16 a register, the lower column or row in the lower half)
///   a: rows g, g + 8, g, g + 8 at columns 2t..2t+1, same, 2t+8..2t+9, same
///   b: rows 2t..2t+1 and 2t+8..2t+9 at column g
///   d: row g at columns 2t, 2t+1, then row g + 8 at the same columns.
__device__ __forceinline__ void MmaBf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Loads four 8 x 8 matrices of 16-bit elements from shared memory. Lane i names row i % 8 of matrix i / 8: 16 bytes,
/// aligned to 16. r[m] of a lane is row lane / 4 of matrix m, columns 2 (lane % 4) and the next in the upper half.
__device__ __forceinline__ void LoadMatrix4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

/// The same, each matrix transposed: r[m] is column lane / 4 of matrix m, rows 2 (lane % 4) and the next.
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

/// Starts to copy 16 bytes (both sides aligned to 16) from global to shared memory, past L1. When not `valid`, writes
/// zeros and does not read `global`. The bytes are there, for this thread, after the CopyAsyncWait that covers them.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}

/// Closes this thread's group of copies: all that it started since the last commit (possibly none).
__device__ __forceinline__ void CopyAsyncCommit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

/// Waits until at most the `kGroups` newest groups of this thread are still under way.
template <int kGroups>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

/// 2^x to 2 units in the last place; exactly 1 at 0, and 0 at -inf. Results below 2^-126 are 0.
__device__ __forceinline__ float Exp2Approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}

/// Flags between ranks (System: other devices and the host see them) and between blocks (Device). What was written
/// before the store-release is visible to whoever load-acquires its value.
__device__ __forceinline__ uint32_t LoadAcquireSystem(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.sys.u32 %0, [%1];\n" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

__device__ __forceinline__ void StoreReleaseSystem(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.sys.u32 [%0], %1;\n" ::"l"(flag), "r"(value) : "memory");
}

__device__ __forceinline__ uint32_t LoadAcquireDevice(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];\n" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

__device__ __forceinline__ void StoreReleaseDevice(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.u32 [%0], %1;\n" ::"l"(flag), "r"(value) : "memory");
}

/// In a kernel launched with overlap: waits until the kernels before it in the stream are done and their writes are
/// visible. To be called before the first touch of memory that an earlier kernel writes, or that it may still read.
__device__ __forceinline__ void DependencyWait() { asm volatile("griddepcontrol.wait;\n" ::: "memory"); }

/// Lets the next kernel of the stream start, if it was launched with overlap. Says nothing about this one's writes.
__device__ __forceinline__ void DependencyLaunch() { asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory"); }

/// Says whether the WHILE (or IF) node of a graph that owns `handle` runs its body (again).
__device__ __forceinline__ void SetLoopContinues(cudaGraphConditionalHandle handle, bool continues) {
  cudaGraphSetConditional(handle, continues ? 1u : 0u);
}

/// A clock of the device, for the bounds of waits: about a microsecond fine.
__device__ __forceinline__ uint64_t GlobalNanoseconds() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %globaltimer;\n" : "=l"(nanoseconds)::"memory");
  return nanoseconds;
}

/// To be called in every loop that polls memory.
__device__ __forceinline__ void SpinPause() { __nanosleep(64); }

}  // namespace quicksilver
