#include "kernels/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

#define QS_TEXT_INNER(x) #x
#define QS_TEXT(x) QS_TEXT_INNER(x)
// The major version of the header is that of the calling convention.
constexpr char kFile[] = "libcublasLt.so." QS_TEXT(CUBLAS_VER_MAJOR);
// Where NVIDIA's packages put it, for machines whose loader does not look there.
constexpr char kDefaultPath[] = "/usr/local/cuda/lib64/libcublasLt.so." QS_TEXT(CUBLAS_VER_MAJOR);

absl::StatusOr<CublasLtLibrary> Load() {
  void* handle = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const std::string why = dlerror();
    handle = dlopen(kDefaultPath, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("the CUDA backend needs ", kFile, " (part of the CUDA toolkit): ", why));
    }
  }
  CublasLtLibrary library;
#define QS_CUBLASLT_FIND(name)                                                                    \
  library.name = reinterpret_cast<decltype(library.name)>(dlsym(handle, "cublasLt" #name));       \
  if (library.name == nullptr) {                                                                  \
    return absl::FailedPreconditionError(absl::StrCat(kFile, " has no function cublasLt" #name)); \
  }
  QS_CUBLASLT_FUNCTIONS(QS_CUBLASLT_FIND)
#undef QS_CUBLASLT_FIND
  return library;
}

}  // namespace

absl::StatusOr<const CublasLtLibrary*> LoadCublasLt() {
  // Never unloaded: the library starts threads and keeps per-thread state.
  static const absl::StatusOr<CublasLtLibrary>& loaded = *new absl::StatusOr<CublasLtLibrary>(Load());
  if (!loaded.ok()) return loaded.status();
  return &*loaded;
}

}  // namespace quicksilver
