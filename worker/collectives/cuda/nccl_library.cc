#include "worker/collectives/cuda/nccl_library.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

constexpr const char* kDefaultName = "libnccl.so.2";

template <typename Function>
bool Find(void* handle, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, symbol));
  return function != nullptr;
}

std::string VersionText(int version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace

absl::StatusOr<std::unique_ptr<NcclLibrary>> NcclLibrary::Load(const std::string& path) {
  std::unique_ptr<NcclLibrary> library(new NcclLibrary);
  library->path_ = path.empty() ? kDefaultName : path;
  library->handle_ = dlopen(library->path_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library->handle_ == nullptr) {
    const char* reason = dlerror();
    return absl::NotFoundError(
        absl::StrCat("NCCL: cannot load '", library->path_, "': ", reason == nullptr ? "no reason given" : reason));
  }
  RETURN_IF_ERROR(library->Resolve());
  RETURN_IF_ERROR(library->ToStatus(library->get_version(&library->version_), "ncclGetVersion"));
  if (library->version_ < kVersionMin) {
    return absl::FailedPreconditionError(absl::StrCat("NCCL: '", library->path_, "' has version ",
                                                      library->version_text(), ", at least ", VersionText(kVersionMin),
                                                      " is needed"));
  }
  return library;
}

absl::Status NcclLibrary::Resolve() {
  const char* missing = nullptr;
  const auto require = [&](const char* symbol, auto& function) {
    if (!Find(handle_, symbol, function) && missing == nullptr) missing = symbol;
  };
  require("ncclGetVersion", get_version);
  require("ncclGetErrorString", get_error_string);
  require("ncclGetUniqueId", get_unique_id);
  require("ncclCommInitRankConfig", comm_init_rank_config);
  require("ncclCommGetAsyncError", comm_get_async_error);
  require("ncclCommAbort", comm_abort);
  require("ncclAllReduce", all_reduce);
  require("ncclAllGather", all_gather);
  Find(handle_, "ncclGetLastError", get_last_error);
  Find(handle_, "ncclCommRevoke", comm_revoke);
  if (missing == nullptr) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("NCCL: '", path_, "' has no function ", missing));
}

std::string NcclLibrary::version_text() const { return VersionText(version_); }

absl::Status NcclLibrary::ToStatus(ncclResult_t result, absl::string_view call) const {
  if (result == ncclSuccess) return absl::OkStatus();
  std::string text = absl::StrCat(call, ": ", get_error_string(result), " (", static_cast<int>(result), ")");
  if (get_last_error != nullptr) {
    // NCCL does not look at the communicator.
    if (const char* more = get_last_error(nullptr); more != nullptr && *more != '\0')
      absl::StrAppend(&text, ": ", more);
  }
  return absl::UnavailableError(text);
}

}  // namespace quicksilver
