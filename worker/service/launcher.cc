#include "worker/service/launcher.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/log.h"
#include "worker/service/exit_code.h"
#include "worker/service/machine.h"

namespace quicksilver {
namespace {

// A group that lived shorter counts as a repeated failure.
constexpr absl::Duration kServedAWhile = absl::Seconds(30);
constexpr absl::Duration kBackoffMin = absl::Seconds(1);
constexpr absl::Duration kBackoffMax = absl::Seconds(60);
// The other ranks notice a loss by themselves and say so in their logs, unless they hang.
constexpr absl::Duration kLastWords = absl::Milliseconds(500);
// Ranks bound their drain themselves; one that hangs is killed so long after that.
constexpr absl::Duration kDrainMargin = absl::Seconds(5);

struct RankProcess {
  int rank = 0;
  pid_t pid = 0;
  int code = -1;  // Exit code, or 128 + signal; -1 while it runs.
};

class Launcher {
 public:
  Launcher(WorkerOptions options, int argc, char** argv) : options_(std::move(options)), arguments_(argv, argv + argc) {
    sigemptyset(&signals_);
    for (const int number : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&signals_, number);
    sigprocmask(SIG_BLOCK, &signals_, &original_mask_);
  }

  int Run() {
    while (true) {
      const absl::Duration start = MonotonicNow();
      if (!StartRanks()) return kExitInternal;
      const int code = Supervise();
      if (stopping_ || IsFinal(code)) return code;
      if (!DevicesLeft()) return kExitModel;
      const absl::Duration delay = policy_.NextDelay(MonotonicNow() - start);
      LogWarning("group lost, forming it again",
                 {{"exit_code", code}, {"epoch", epoch_}, {"delay_seconds", absl::ToDoubleSeconds(delay)}});
      if (Sleep(delay)) return kExitOk;
      ++restarts_;
    }
  }

 private:
  bool StartRanks() {
    // Higher than any before, also of a launcher that ran before this one.
    epoch_ = std::max(epoch_ + 1, static_cast<uint64_t>(absl::ToUnixMicros(absl::Now())));
    ranks_.clear();
    for (int rank = 0; rank < options_.tensor_parallel_size; ++rank) {
      const pid_t pid = Spawn(rank);
      if (pid < 0) {
        LogError("cannot start a rank", {{"rank", rank}, {"error", std::strerror(errno)}});
        Kill(SIGKILL);
        WaitAll(absl::InfiniteDuration());
        return false;
      }
      ranks_.push_back({rank, pid});
    }
    return true;
  }

  pid_t Spawn(int rank) {
    std::vector<std::string> arguments = arguments_;
    arguments.push_back(absl::StrCat("--rank=", rank));
    arguments.push_back(absl::StrCat("--epoch=", epoch_));
    arguments.push_back(absl::StrCat("--restarts=", restarts_));
    arguments.push_back(absl::StrCat("--planned-device=", options_.planned_device));
    if (!options_.unhealthy_devices.empty()) {
      arguments.push_back(absl::StrCat("--unhealthy-devices=", absl::StrJoin(options_.unhealthy_devices, ",")));
    }
    arguments.push_back(absl::StrCat("--planned-pages=", options_.planned_pages));
    // An abstract name needs no free port, and no file that could be left behind.
    arguments.push_back(absl::StrCat("--group-address=unix-abstract:quicksilver-", getpid(), "-", epoch_));
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid != 0) return pid;
    // Ctrl-C on a terminal is for the launcher, which forwards it.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(kExitGroupLost);
    // A rank that is told to end before it listens must not die of it: the signal waits until it does.
    sigset_t mask = original_mask_;
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigprocmask(SIG_SETMASK, &mask, nullptr);
    execv("/proc/self/exe", pointers.data());
    _exit(kExitInternal);
  }

  // Until all ranks have ended. Returns the group's exit code.
  int Supervise() {
    kill_at_ = absl::InfiniteDuration();
    while (Reap()) {
      if (MonotonicNow() >= kill_at_) {
        Kill(SIGKILL);
        kill_at_ = absl::InfiniteDuration();
      }
      HandleSignal(std::min(kill_at_ - MonotonicNow(), absl::Seconds(1)));
    }
    return GroupCode();
  }

  // False when no rank is left.
  bool Reap() {
    bool left = false;
    for (RankProcess& rank : ranks_) {
      if (rank.code >= 0) continue;
      int status = 0;
      if (waitpid(rank.pid, &status, WNOHANG) != rank.pid) {
        left = true;
        continue;
      }
      rank.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
      if (rank.code == kExitDeviceFailed) NoteDeviceFailure(rank);
      if (!stopping_ || rank.code != kExitOk) {
        LogWarning("rank ended", {{"rank", rank.rank}, {"exit_code", rank.code}, {"epoch", epoch_}});
        kill_at_ = std::min(kill_at_, MonotonicNow() + kLastWords);
      }
    }
    return left;
  }

  void NoteDeviceFailure(RankProcess& rank) {
    rank.code = kExitGroupLost;
    const int32_t device = DeviceOfRank(options_, rank.rank);
    LogWarning("a device failed", {{"rank", rank.rank}, {"device", device}});
    if (health_.OnFailure(device)) LogError("device unhealthy: it is not used again", {{"device", device}});
  }

  // Whether every rank finds a device that is not unhealthy, without sharing more than --devices says.
  bool DevicesLeft() {
    options_.unhealthy_devices = health_.Unhealthy();
    if (options_.unhealthy_devices.empty()) return true;
    const auto healthy = [this](int32_t device) { return !absl::c_linear_search(options_.unhealthy_devices, device); };
    const int64_t left = absl::c_count_if(options_.devices, healthy);
    if (left >= options_.tensor_parallel_size) return true;
    LogError("too few healthy devices are left for the ranks",
             {{"devices", left}, {"ranks", options_.tensor_parallel_size}, {"exit_code", int{kExitModel}}});
    return false;
  }

  // What needs a person wins over what is a consequence; the ranks that were killed here say nothing.
  int GroupCode() const {
    int code = kExitOk;
    for (const RankProcess& rank : ranks_) {
      if (IsFinal(rank.code)) return rank.code;
      if (rank.code != kExitOk) code = std::max(code, rank.code < 128 ? rank.code : static_cast<int>(kExitGroupLost));
    }
    if (killed_by_signal_ != 0) return 128 + killed_by_signal_;
    return code;
  }

  void Kill(int number) {
    for (const RankProcess& rank : ranks_) {
      if (rank.code < 0) kill(rank.pid, number);
    }
  }

  void HandleSignal(absl::Duration wait) {
    const timespec bound = absl::ToTimespec(std::max(wait, absl::ZeroDuration()));
    const int number = sigtimedwait(&signals_, nullptr, &bound);
    if (number != SIGTERM && number != SIGINT) return;
    if (stopping_) {
      LogWarning("second signal: killing the ranks", {{"signal", number}});
      killed_by_signal_ = number;
      Kill(SIGKILL);
      return;
    }
    LogInfo("stopping", {{"signal", number}});
    stopping_ = true;
    kill_at_ = MonotonicNow() + absl::Seconds(options_.drain_timeout_seconds) + kDrainMargin;
    Kill(SIGTERM);
  }

  void WaitAll(absl::Duration bound) {
    const absl::Duration end = MonotonicNow() + bound;
    while (Reap() && MonotonicNow() < end) HandleSignal(absl::Milliseconds(100));
  }

  // True when a signal says to end meanwhile.
  bool Sleep(absl::Duration delay) {
    const absl::Duration end = MonotonicNow() + delay;
    ranks_.clear();
    while (!stopping_ && MonotonicNow() < end) HandleSignal(end - MonotonicNow());
    return stopping_;
  }

  WorkerOptions options_;
  const std::vector<std::string> arguments_;
  DeviceHealth health_;
  sigset_t signals_, original_mask_;
  RestartPolicy policy_;
  std::vector<RankProcess> ranks_;
  uint64_t epoch_ = 0;
  uint64_t restarts_ = 0;
  absl::Duration kill_at_ = absl::InfiniteDuration();
  bool stopping_ = false;
  int killed_by_signal_ = 0;
};

}  // namespace

std::vector<int32_t> DeviceHealth::Unhealthy() const {
  std::vector<int32_t> devices;
  for (const auto& [device, failures] : failures_) {
    if (failures >= kFailuresMax) devices.push_back(device);
  }
  return devices;
}

absl::Duration RestartPolicy::NextDelay(absl::Duration lived) {
  if (lived >= kServedAWhile) quick_failures_ = 0;
  const int failures = quick_failures_++;
  if (failures == 0) return absl::ZeroDuration();
  return std::min(kBackoffMax, kBackoffMin * (int64_t{1} << std::min(failures - 1, 6)));
}

int RunLauncher(const WorkerOptions& options, int argc, char** argv) { return Launcher(options, argc, argv).Run(); }

}  // namespace quicksilver
