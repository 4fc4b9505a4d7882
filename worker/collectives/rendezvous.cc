#include "worker/collectives/rendezvous.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"

namespace quicksilver {

absl::Status MemoryRendezvous::Put(const std::string& key, const std::string& value) {
  if (value.size() > kRendezvousValueBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("rendezvous: value of '", key, "' has ", value.size(),
                                                   " bytes, at most ", kRendezvousValueBytesMax, " are allowed"));
  }
  MutexLock lock(mutex_);
  if (values_.size() >= kRendezvousKeysMax) return absl::ResourceExhaustedError("rendezvous: too many keys");
  const auto [entry, inserted] = values_.emplace(key, value);
  if (!inserted && entry->second != value) {
    return absl::AlreadyExistsError(absl::StrCat("rendezvous: '", key, "' has been set to another value"));
  }
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> MemoryRendezvous::Get(const std::vector<std::string>& keys,
                                                               absl::Duration timeout) {
  const absl::Duration deadline = MonotonicNow() + timeout;
  std::vector<std::string> values;
  MutexLock lock(mutex_);
  while (values.size() < keys.size()) {
    if (closed_) return absl::UnavailableError("rendezvous: closed");
    if (const auto found = values_.find(keys[values.size()]); found != values_.end()) {
      values.push_back(found->second);
      continue;
    }
    const absl::Duration left = deadline - MonotonicNow();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrCat("rendezvous: '", keys[values.size()], "' is missing"));
    }
    changed_.WaitFor(mutex_, left);
  }
  return values;
}

void MemoryRendezvous::Close() {
  MutexLock lock(mutex_);
  closed_ = true;
  changed_.NotifyAll();
}

}  // namespace quicksilver
