#pragma once

#include <nccl.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace quicksilver {

/// NCCL, loaded when it is needed: a worker on CPUs, or with one rank, runs where there is none. Never unloaded.
class NcclLibrary {
 public:
  /// Loads `path`; empty: libnccl.so.2, where the dynamic loader finds it. NotFound: there is none, or it lacks a
  /// function. FailedPrecondition: it is older than kVersionMin, which alone knows the calls this project makes.
  static absl::StatusOr<std::unique_ptr<NcclLibrary>> Load(const std::string& path);

  static constexpr int kVersionMin = NCCL_VERSION(2, 18, 1);

  const std::string& path() const { return path_; }
  int version() const { return version_; }  ///< NCCL_VERSION_CODE of the library, not of the header.
  std::string version_text() const;         ///< E.g. "2.28.9".

  /// OK for ncclSuccess, else Unavailable with what the library says.
  absl::Status ToStatus(ncclResult_t result, absl::string_view call) const;

  decltype(&ncclGetVersion) get_version = nullptr;
  decltype(&ncclGetErrorString) get_error_string = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank_config = nullptr;
  decltype(&ncclCommGetAsyncError) comm_get_async_error = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclAllReduce) all_reduce = nullptr;
  decltype(&ncclAllGather) all_gather = nullptr;
  // Null where the library has no such function.
  decltype(&ncclGetLastError) get_last_error = nullptr;
  decltype(&ncclCommRevoke) comm_revoke = nullptr;

 private:
  NcclLibrary() = default;
  absl::Status Resolve();

  std::string path_;
  void* handle_ = nullptr;
  int version_ = 0;
};

}  // namespace quicksilver
