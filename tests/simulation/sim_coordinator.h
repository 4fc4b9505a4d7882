#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/core/dispatcher.h"
#include "tests/simulation/fairness.h"
#include "tests/simulation/history.h"
#include "tests/simulation/mutant.h"
#include "tests/simulation/network.h"
#include "tests/simulation/plan.h"
#include "tests/simulation/world.h"

namespace quicksilver::simulation {

/// The shell around the real Dispatcher, as small as it can be: dials groups, keeps what each choice has so far,
/// carries out actions, and holds them to its own books.
class SimCoordinator : public Endpoint {
 public:
  /// All outlive this. `groups`: by number.
  SimCoordinator(World& world, Network& network, History& history, const Plan& plan, int number, Mutant mutant,
                 std::vector<Endpoint*> groups);

  void Start();
  /// The process dies; its clients see their connections reset.
  void Crash(bool silently);
  bool up() const { return dispatcher_.has_value(); }

  void Submit(const RequestPlan& request);
  void ClientCancels(uint64_t number);

  bool OnDialled(uint64_t) override { return false; }
  void OnMessage(uint64_t stream, const Message& message) override;
  void OnClosed(uint64_t stream) override;

  /// Nothing is held. Says what is, otherwise.
  std::string Residue() const;

 private:
  struct Choice {
    std::vector<int32_t> tokens;  // From the prompt's end; -1 where masked.
    uint32_t step = 0, block_step = 0, final_before = 0;
    bool progressed = false;  // Some update came.
    bool ended = false;
    bool waits = false;    // It was on a group that is lost or gave it back, and is on no other one yet.
    SequenceId current{};  // 0: on no group.
    Connection on;
  };
  struct Live {
    const RequestPlan* plan = nullptr;
    std::vector<Choice> choices;
    bool placed = false;
  };
  struct Place {
    Endpoint* end = nullptr;
    uint64_t stream = 0;  // 0: none.
    bool live = false;    // The dispatcher has it, as far as it said.
    Connection connection;
    uint64_t connections = 0;
    uint64_t epoch = 0;
    std::string fingerprint;
    int failures = 0;
  };
  struct Dialled {
    int group = 0;
    Connection connection;
  };

  absl::Duration now() const { return world_.now() + clock_offset_; }
  void Dial(int group);
  void Rest(int group);
  void ArmTick();
  void OnTick();
  void OnInfo(int group, const v1::GroupInfo& info);
  void OnBeat(Connection connection, const v1::Heartbeat& beat);
  void OnResult(Connection connection, const v1::StepResult& result);
  void OnUpdate(const v1::SequenceUpdate& update, Connection connection);
  void Apply(RequestId id, Live& live, uint32_t choice, const v1::SequenceUpdate& update, SequenceId sequence);
  std::string Record(Live& live, uint32_t choice, const v1::SequenceUpdate& update);
  void OnEnd(RequestId id, Live& live, uint32_t choice, const v1::SequenceEnd& end, SequenceId sequence);
  v1::Submit MakeSubmit(const Live& live, const SubmitSequence& submit) const;

  void Execute(const Actions& actions);
  void Carry(const SubmitSequence& submit);
  void Carry(const CancelSequence& cancel);
  void Carry(const FailRequest& failed);
  void Carry(const CompleteRequest& complete);
  void Carry(const DropGroup& drop);
  void MarkLost(Connection connection);
  void CheckOneBuild(const Live& live, uint32_t number, const std::string& fingerprint);
  void CheckBooks();
  void MeasureFairness();
  void CheckNothingIsIdle();
  uint64_t LargestOf(const std::string& tenant) const;
  bool Expect(bool condition, uint64_t number, const char* rule, const std::string& text);

  World& world_;
  Network& network_;
  History& history_;
  const Plan& plan_;
  const int number_;
  const Mutant mutant_;
  absl::Duration clock_offset_;
  uint64_t incarnation_ = 0;
  uint64_t executed_ = 0;
  DispatcherOptions options_;
  std::optional<Dispatcher> dispatcher_;
  std::map<RequestId, Live> live_;
  std::map<uint64_t, Dialled> dialled_;  // By stream; closed ones stay for what comes late.
  std::vector<Place> places_;
  std::map<SequenceId, std::pair<RequestId, uint32_t>> given_;  // All sequences ever, for mutants.
  absl::Duration armed_ = absl::InfiniteDuration();
  FairnessMeter fairness_;
};

}  // namespace quicksilver::simulation
