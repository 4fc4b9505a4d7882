#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

/// What a rank says of itself when it joins: equal on all ranks, or the group does not form.
using Agreement = std::map<std::string, std::string>;

/// Gathers the ranks of one group. Thread-safe, knows no transport.
class JoinTable {
 public:
  JoinTable(int size, uint64_t epoch) : size_(size), epoch_(epoch) {}

  /// Waits until every rank has joined. FailedPrecondition, on every rank: a field of the agreement differs (names it
  /// and both values), or a rank came twice. Aborted: another epoch. DeadlineExceeded names the missing ranks.
  absl::Status Join(int rank, uint64_t epoch, const Agreement& agreement, absl::Duration timeout);

  /// Waits until every rank has been told how the group stands, at most `timeout`.
  void WaitAllAnswered(absl::Duration timeout);

 private:
  absl::Status Admit(int rank, uint64_t epoch, const Agreement& agreement) REQUIRES_LOCK(mutex_);
  std::string Missing() REQUIRES_LOCK(mutex_);

  const int size_;
  const uint64_t epoch_;
  Mutex mutex_;
  CondVar changed_;
  std::map<int, Agreement> joined_ GUARDED_BY(mutex_);
  absl::Status disagreement_ GUARDED_BY(mutex_);
  int answered_ GUARDED_BY(mutex_) = 0;
};

/// The Group service while the group forms, on rank 0.
class GroupServer {
 public:
  /// Unavailable, naming the address: it cannot be bound.
  static absl::StatusOr<std::unique_ptr<GroupServer>> Start(const std::string& address, JoinTable& table,
                                                            RendezvousStore& store, absl::Duration formation_timeout);
  virtual ~GroupServer() = default;
};

/// The same from the other ranks.
class GroupClient : public RendezvousStore {
 public:
  static std::unique_ptr<GroupClient> Make(const std::string& address);
  /// As JoinTable::Join. DeadlineExceeded also when rank 0 does not answer at all.
  virtual absl::Status Join(int rank, uint64_t epoch, const Agreement& agreement, absl::Duration timeout) = 0;
};

}  // namespace quicksilver
