#include "kernels/cuda/cublaslt_library.h"

#include "tests/support/cuda_twin/include/cublasLt.h"

namespace quicksilver {

// In place of kernels/cuda/cublaslt_library.cc, which loads NVIDIA's.
absl::StatusOr<const CublasLtLibrary*> LoadCublasLt() {
  static const CublasLtLibrary library = [] {
    CublasLtLibrary functions;
#define QS_CUBLASLT_FIND(name) functions.name = &cublasLt##name;
    QS_CUBLASLT_FUNCTIONS(QS_CUBLASLT_FIND)
#undef QS_CUBLASLT_FIND
    return functions;
  }();
  return &library;
}

}  // namespace quicksilver
