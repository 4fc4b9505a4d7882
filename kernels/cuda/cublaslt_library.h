#pragma once

#include <cublasLt.h>

#include "absl/status/statusor.h"

namespace quicksilver {

// NVIDIA's matrix product library, loaded when a device is first used: a worker that runs on a CPU needs none, and in a
// process that never loads it threads with small stacks still start (it brings 92 KiB of thread-local storage).

/// The functions that the project calls, without their prefix cublasLt.
#define QS_CUBLASLT_FUNCTIONS(X)  \
  X(Create)                       \
  X(Destroy)                      \
  X(GetVersion)                   \
  X(GetStatusString)              \
  X(Matmul)                       \
  X(MatmulAlgoCapGetAttribute)    \
  X(MatmulAlgoCheck)              \
  X(MatmulAlgoConfigGetAttribute) \
  X(MatmulAlgoConfigSetAttribute) \
  X(MatmulAlgoGetHeuristic)       \
  X(MatmulAlgoGetIds)             \
  X(MatmulAlgoInit)               \
  X(MatmulDescCreate)             \
  X(MatmulDescDestroy)            \
  X(MatmulDescSetAttribute)       \
  X(MatmulPreferenceCreate)       \
  X(MatmulPreferenceDestroy)      \
  X(MatmulPreferenceSetAttribute) \
  X(MatrixLayoutCreate)           \
  X(MatrixLayoutDestroy)          \
  X(MatrixLayoutSetAttribute)

struct CublasLtLibrary {
#define QS_CUBLASLT_MEMBER(name) decltype(&cublasLt##name) name = nullptr;
  QS_CUBLASLT_FUNCTIONS(QS_CUBLASLT_MEMBER)
#undef QS_CUBLASLT_MEMBER
};

/// The library, loaded by the first call and kept for the life of the process. FailedPrecondition, naming the file: it
/// is not installed, or lacks a function. Thread-safe.
absl::StatusOr<const CublasLtLibrary*> LoadCublasLt();

}  // namespace quicksilver
