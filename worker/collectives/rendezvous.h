#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"

namespace quicksilver {

/// Where the ranks of a group leave each other their addresses while they form. Thread-safe.
class RendezvousStore {
 public:
  virtual ~RendezvousStore() = default;
  /// Sets `key` once. AlreadyExists when it holds another value; Unavailable: the store is gone.
  virtual absl::Status Put(const std::string& key, const std::string& value) = 0;
  /// Waits until every key is there and returns the values in order. DeadlineExceeded names the first missing key.
  virtual absl::StatusOr<std::vector<std::string>> Get(const std::vector<std::string>& keys,
                                                       absl::Duration timeout) = 0;
};

/// A store in this process's memory: what rank 0 serves to the others, and what tests use.
class MemoryRendezvous final : public RendezvousStore {
 public:
  absl::Status Put(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::vector<std::string>> Get(const std::vector<std::string>& keys, absl::Duration timeout) override;
  /// Pending and later waits fail with Unavailable.
  void Close();

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<std::string, std::string> values_ GUARDED_BY(mutex_);  // At most kRendezvousKeysMax.
  bool closed_ GUARDED_BY(mutex_) = false;
};

inline constexpr size_t kRendezvousKeysMax = 1 << 16;
inline constexpr size_t kRendezvousValueBytesMax = 1 << 20;

}  // namespace quicksilver
