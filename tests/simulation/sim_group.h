#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "tests/simulation/history.h"
#include "tests/simulation/mutant.h"
#include "tests/simulation/network.h"
#include "tests/simulation/plan.h"
#include "tests/simulation/world.h"

namespace quicksilver::simulation {

class SimEngine;

/// The processes of a group: streams, heartbeats and the loop around its engine. They can die, hang, drain, and start
/// again under a new epoch.
class SimGroup : public Endpoint {
 public:
  /// All outlive this.
  SimGroup(World& world, Network& network, History& history, const Plan& plan, int number, Mutant mutant);

  ~SimGroup() override;

  void Start();
  /// Every rank dies; the launcher starts them again after `pause`.
  void Crash(absl::Duration pause, bool silently);
  /// The ranks form anew under another epoch, and the streams stay open.
  void Reform();
  /// SIGSTOP; SIGCONT with Continue().
  void Hang();
  void Continue();
  /// The engine stands still; the ranks end themselves at the step's deadline.
  void Stick();
  void set_slow(double factor) { slow_ = factor; }
  /// SIGTERM: takes nothing new, ends after `grace` at the latest, and is started again, perhaps another build.
  void Drain(absl::Duration grace, const std::string& next_build);
  /// Dies so many more times right after a start.
  void set_storm(int deaths) { storm_ = deaths; }

  bool up() const { return engine_ != nullptr; }
  const std::string& fingerprint() const { return fingerprint_; }
  /// Nothing is held. Says what is, otherwise.
  std::string Residue() const;

  bool OnDialled(uint64_t stream) override;
  void OnMessage(uint64_t stream, const Message& message) override;
  void OnClosed(uint64_t stream) override;

 private:
  /// Runs now, or when the processes go on. Nothing when this incarnation is gone by then.
  void Do(std::function<void()> work);
  void Handle(uint64_t stream, const v1::CoordinatorMessage& message);
  v1::SequenceUpdate OnSubmit(uint64_t stream, const v1::Submit& submit);
  void Wake();
  void EndStep();
  void Report();
  void BeginEpoch();
  void Beat();
  void SendBeat(uint64_t stream);
  void LeaveWhenDrained();
  void Send(uint64_t stream, v1::WorkerMessage message);

  absl::Duration now() const { return world_.now() + group_.clock_offset; }

  World& world_;
  Network& network_;
  History& history_;
  const Plan& plan_;
  const GroupPlan& group_;
  const int number_;
  const Mutant mutant_;
  std::string fingerprint_;
  std::string next_build_;
  uint64_t epoch_ = 0;
  uint64_t incarnation_ = 0;  // Of the processes; also counts their absence.
  std::unique_ptr<SimEngine> engine_;
  std::set<uint64_t> streams_;
  std::set<uint64_t> greeted_;
  bool stepping_ = false;
  bool hung_ = false;
  bool stuck_ = false;
  bool draining_ = false;
  double slow_ = 1.0;
  int storm_ = 0;
  std::deque<std::function<void()>> deferred_;  // What happened to hung processes.
};

}  // namespace quicksilver::simulation
