#include "worker/service/rank.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "common/http/server.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/mutex.h"
#include "common/status_macros.h"
#include "worker/collectives/timed_communicator.h"
#include "worker/engine/engine.h"
#include "worker/service/exit_code.h"
#include "worker/service/formation.h"
#include "worker/service/group_plan.h"
#include "worker/service/health_pages.h"
#include "worker/service/machine.h"
#include "worker/service/step_watchdog.h"
#include "worker/service/worker_server.h"

namespace quicksilver {
namespace {

// Lets running sequences finish when the process is told to end. Its thread is the only one that takes signals.
class StopWatch {
 public:
  explicit StopWatch(const WorkerOptions& options) : options_(options) {
    sigemptyset(&signals_);
    for (const int number : {SIGTERM, SIGINT, kWake}) sigaddset(&signals_, number);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    signal(SIGPIPE, SIG_IGN);
    thread_ = std::thread([this] { Watch(); });
  }
  ~StopWatch() {
    pthread_kill(thread_.native_handle(), kWake);
    thread_.join();
  }

  /// From now on a signal drains `engine` (leader), or is left to the leader (`server` is null).
  void Serve(Engine* engine, WorkerServer* server) {
    MutexLock lock(mutex_);
    serving_ = true;
    engine_ = engine;
    server_ = server;
  }
  void Done() {
    MutexLock lock(mutex_);
    engine_ = nullptr;
    server_ = nullptr;
  }

 private:
  static constexpr int kWake = SIGUSR1;  // Ends the thread.

  void Watch() {
    int number = 0;
    sigwait(&signals_, &number);
    if (number == kWake) return;
    {
      MutexLock lock(mutex_);
      if (!serving_) {
        LogInfo("stopped before the group had formed", {{"signal", number}});
        _exit(kExitOk);
      }
      if (server_ != nullptr) {
        LogInfo("draining", {{"signal", number}, {"seconds_max", options_.drain_timeout_seconds}});
        server_->BeginDrain();
      }
    }
    const absl::Duration begun = MonotonicNow();
    const absl::Duration end = begun + absl::Seconds(options_.drain_timeout_seconds);
    while (MonotonicNow() < end && !(Idle() && (Alone() || MonotonicNow() >= begun + kLameDuck))) {
      if (LeaveOnSignal(absl::Milliseconds(20))) return;
    }
    {
      MutexLock lock(mutex_);
      if (server_ != nullptr) engine_->Shutdown();
    }
    while (!LeaveOnSignal(absl::Hours(1))) {
    }
  }

  bool Idle() {
    MutexLock lock(mutex_);
    if (server_ == nullptr) return true;
    const EngineLoad load = engine_->Load();
    return load.running + load.waiting == 0;
  }

  // No coordinator could still send a sequence.
  bool Alone() {
    MutexLock lock(mutex_);
    return server_ == nullptr || server_->Status().streams == 0;
  }

  // True when the thread is to end.
  bool LeaveOnSignal(absl::Duration wait) {
    const timespec bound = absl::ToTimespec(wait);
    const int number = sigtimedwait(&signals_, nullptr, &bound);
    if (number <= 0) return false;
    if (number == kWake) return true;
    LogWarning("second signal: leaving without draining", {{"signal", number}});
    _exit(128 + number);
  }

  const WorkerOptions& options_;
  sigset_t signals_;
  std::thread thread_;
  Mutex mutex_;
  bool serving_ GUARDED_BY(mutex_) = false;
  Engine* engine_ GUARDED_BY(mutex_) = nullptr;
  WorkerServer* server_ GUARDED_BY(mutex_) = nullptr;
};

// Says how far the weights are, every other second.
LoadProgress ProgressLog(int rank) {
  return [rank, last = MonotonicNow()](size_t done, size_t of) mutable {
    const absl::Duration now = MonotonicNow();
    if (now - last < absl::Seconds(2)) return;
    last = now;
    LogInfo("loading weights", {{"rank", rank}, {"mebibytes", done >> 20}, {"of", of >> 20}});
  };
}

class Rank {
 public:
  explicit Rank(const WorkerOptions& options) : options_(options), stop_(options) {}

  int Run() {
    QS_FAILPOINT("worker.init", static_cast<uint64_t>(options_.rank));
    if (const absl::Status status = Prepare(); !status.ok()) return End(status);
    if (leads()) {
      if (const absl::Status status = Listen(); !status.ok()) {
        LogError(std::string(status.message()));
        return kExitBind;
      }
    }
    if (const absl::Status status = Form(); !status.ok()) return End(status);
    const absl::Status status = Serve();
    // The same settings have served: whatever is lacking now, a new group may find it.
    if (!status.ok()) return End(absl::IsInternal(status) ? status : absl::UnavailableError(status.message()));
    LogInfo("stopped", {{"rank", options_.rank}});
    return kExitOk;
  }

 private:
  bool leads() const { return options_.rank == 0; }

  absl::Status Prepare() {
    ASSIGN_OR_RETURN(model_, OpenModelForServing(options_));
    ASSIGN_OR_RETURN(const Machine machine, InspectMachine(options_));
    ASSIGN_OR_RETURN(plan_, MakeGroupPlan(options_, model_, machine));
    LogMemoryPlan(options_, plan_);
    ASSIGN_OR_RETURN(ops_, OpenRankDevice(options_, machine, plan_.precision, plan_.threads));
    RETURN_IF_ERROR(ReadDigests(model_, plan_));
    kernels_ = ops_->name();
    // Sums in another order have other bits.
    if (machine.cuda && options_.collectives == "nccl-fast") absl::StrAppend(&kernels_, " nccl-fast");
    return absl::OkStatus();
  }

  absl::Status Listen() {
    ASSIGN_OR_RETURN(server_, WorkerServer::Start(options_.listen, DescribeGroup(options_, plan_, kernels_)));
    pages_ = std::make_unique<HealthPages>(options_, plan_, *server_);
    return pages_->Start();
  }

  absl::Status Form() {
    Agreement agreement = AgreementOf(options_, plan_);
    agreement["kernels"] = kernels_;
    ASSIGN_OR_RETURN(links_, FormGroup(options_, agreement, plan_.machine.cuda ? ops_.get() : nullptr));
    if (leads() && !plan_.machine.cuda) TimeCollectives();
    prctl(PR_SET_DUMPABLE, 0);  // Prompts live in this process's memory. Forming needs /proc/self/fd.
    ASSIGN_OR_RETURN(transformer_,
                     Transformer::Load(plan_.spec, *model_.checkpoint, *ops_, *links_.ranks, plan_.engine.step_rows_max,
                                       plan_.pages, plan_.page_size, ProgressLog(options_.rank)));
    model_.checkpoint.reset();
    // Ranks load at different speeds, and collectives wait for peers no longer than --peer-timeout.
    const absl::Duration patience = absl::Seconds(options_.formation_timeout_seconds);
    RETURN_IF_ERROR(links_.control->Barrier(patience));
    engine_ =
        Engine::Create(*transformer_, *ops_, *links_.ranks, *links_.control, plan_.engine, options_.epoch,
                       [this](uint64_t stream, v1::StepResult result) { server_->Report(stream, std::move(result)); });
    RETURN_IF_ERROR(engine_->Prepare());
    return links_.control->Barrier(patience);
  }

  void TimeCollectives() {
    links_.ranks =
        MakeTimedCommunicator(std::move(links_.ranks),
                              [&metrics = pages_->metrics()](CollectiveOperation operation, absl::Duration duration) {
                                const double seconds = absl::ToDoubleSeconds(duration);
                                if (operation == CollectiveOperation::kAllReduce) {
                                  metrics.ObserveAllReduce(seconds);
                                } else {
                                  metrics.ObserveAllGather(seconds);
                                }
                              });
  }

  absl::Status Serve() {
    stop_.Serve(engine_.get(), server_.get());
    if (leads()) {
      server_->AttachEngine(*engine_);
      LogInfo("group ready", {{"group", options_.group_name},
                              {"listen", options_.listen},
                              {"metrics", options_.metrics_listen},
                              {"epoch", options_.epoch},
                              {"ranks", options_.tensor_parallel_size},
                              {"weight_bytes", transformer_->weight_bytes()},
                              {"kv_bytes", transformer_->kv_bytes()}});
    }
    const StepWatchdog watchdog(*engine_, options_.rank);
    RETURN_IF_ERROR(engine_->Run());  // End() leaves with the engine in place: the server still asks it.
    stop_.Done();
    if (leads()) {
      server_->DetachEngine();
      server_->Stop(absl::Seconds(1));
    }
    return absl::OkStatus();
  }

  // A rank that has failed must not linger: peers and coordinators learn of it by its sockets.
  [[noreturn]] int End(const absl::Status& status) {
    LogError(std::string(status.message()), {{"rank", options_.rank}, {"epoch", options_.epoch}});
    const bool device_failed = ops_ != nullptr && absl::IsUnavailable(ops_->status());
    const bool launched = !options_.planned_device.empty();
    _exit(device_failed && launched ? kExitDeviceFailed : static_cast<int>(ExitCodeOf(status)));
  }

  const WorkerOptions& options_;
  StopWatch stop_;  // First: blocks the signals before there are threads.
  OpenModel model_;
  GroupPlan plan_;
  std::string kernels_;
  std::unique_ptr<WorkerServer> server_;
  std::unique_ptr<HealthPages> pages_;
  std::unique_ptr<Ops> ops_;
  Links links_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace

int RunRank(const WorkerOptions& options) { return Rank(options).Run(); }

}  // namespace quicksilver
