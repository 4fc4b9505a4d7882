#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "quicksilver/v1/worker.pb.h"
#include "worker/model/model_spec.h"

namespace quicksilver::simulation {

/// A client's request and what it will do. Everything is drawn before the run, so that leaving out one part of a plan
/// changes nothing of the others.
struct RequestPlan {
  uint64_t number = 0;  ///< From 1.
  int coordinator = 0;
  absl::Duration at;
  std::string tenant;
  std::string cache_key;
  v1::Priority priority = v1::PRIORITY_UNSPECIFIED;
  int choices = 1;
  std::vector<int32_t> prompt;
  int tokens_max = 1;
  v1::Decoding decoding;
  bool provisional = false;
  absl::Duration time_max = absl::InfiniteDuration();  ///< The client's deadline.
  absl::Duration target = absl::ZeroDuration();        ///< Latency target; 0: none.
  absl::Duration cancel_after = absl::InfiniteDuration();
  int stop_after = -1;  ///< A stop string is found in the first choice once so many tokens are final; -1: never.
  int poison_at = -1;   ///< A group that runs its forward of this number dies; -1: harmless.
  int nan_at = -1;      ///< The forward of this number has a NaN; -1: none.
};

constexpr int kChoicesMax = 3;

enum class FaultKind {
  kCrash,         ///< The group's processes die; restarted after `duration`, with a new epoch.
  kPowerLoss,     ///< The same, and nobody hears of it.
  kHang,          ///< SIGSTOP, then SIGCONT after `duration`.
  kStuck,         ///< The engine stands still while the process beats; it ends itself at the step's deadline.
  kSlow,          ///< Steps take ten times as long.
  kDrain,         ///< SIGTERM: drains, leaves, and is started again after `duration`.
  kNewBuild,      ///< The same; what is started has another fingerprint.
  kReform,        ///< The engine begins anew under another epoch; streams stay open.
  kStorm,         ///< Dies several times right after its start.
  kBlockToGroup,  ///< Partition in one direction.
  kBlockToCoordinator,
  kBlockBoth,
  kDelay,     ///< The link is slow.
  kBreak,     ///< The connection breaks.
  kHalfOpen,  ///< It breaks, and only the coordinator hears of it.
  kCoordinatorCrash,
};
constexpr int kFaultKinds = 16;
const char* NameOf(FaultKind kind);

struct FaultPlan {
  FaultKind kind = FaultKind::kCrash;
  absl::Duration at;
  absl::Duration duration;
  int coordinator = 0;
  int group = 0;
};

struct GroupPlan {
  std::string fingerprint;
  int sequences_max = 4;
  int step_rows_max = 32;
  int pages = 16;
  int waiting_max = 8;
  absl::Duration step_base;
  absl::Duration step_row;
  absl::Duration clock_offset;  ///< Its monotonic clock starts anywhere.
};

/// One seed: a small cluster, its clients and its bad luck.
struct Plan {
  uint64_t seed = 0;
  ModelSpec model;
  int page_size = 8;
  bool fair = false;              ///< All requests are of one class: tenants can be compared.
  absl::Duration starvation_max;  ///< How long a sequence may be without a row on a group that runs.
  absl::Duration chaos;           ///< How long faults may begin.
  absl::Duration lease;
  absl::Duration resume_wait;
  absl::Duration target_grace;
  uint32_t queue_requests_max = 8;
  uint32_t tenant_requests_max = 0;  ///< At once; 0: no limit.
  absl::Duration queue_time_max;
  std::vector<absl::Duration> coordinators;  ///< Their clocks' offsets.
  std::vector<GroupPlan> groups;
  std::vector<RequestPlan> requests;  ///< By time.
  std::vector<FaultPlan> faults;      ///< By time.
};

Plan MakePlan(uint64_t seed);
/// The Submit message of a choice, but for its sequence id, terms and checkpoint.
v1::Submit SubmitOf(const Plan& plan, const RequestPlan& request, int choice);
uint64_t SeedOf(const Plan& plan, const RequestPlan& request);
uint64_t BuildOf(const std::string& fingerprint);
std::string Describe(const FaultPlan& fault);
std::string Describe(const RequestPlan& request);

}  // namespace quicksilver::simulation
