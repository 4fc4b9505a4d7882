#include "tests/simulation/simulation.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace quicksilver::simulation {
namespace {

// From the end of the chaos until all is quiet: longer than any wait that a request may be in.
constexpr absl::Duration kPeaceMax = absl::Seconds(45);

class Simulation {
 public:
  Simulation(const Plan& plan, Mutant mutant, bool tracing)
      : plan_(plan), world_(tracing), network_(world_, plan.seed), history_(world_, plan) {
    for (size_t g = 0; g < plan.groups.size(); ++g) {
      groups_.push_back(std::make_unique<SimGroup>(world_, network_, history_, plan_, static_cast<int>(g), mutant));
    }
    std::vector<Endpoint*> ends;
    for (const auto& group : groups_) ends.push_back(group.get());
    for (size_t c = 0; c < plan.coordinators.size(); ++c) {
      coordinators_.push_back(
          std::make_unique<SimCoordinator>(world_, network_, history_, plan_, static_cast<int>(c), mutant, ends));
    }
  }

  RunResult Run() {
    for (const auto& group : groups_) group->Start();
    for (const auto& coordinator : coordinators_) coordinator->Start();
    for (const RequestPlan& request : plan_.requests) Schedule(request);
    for (const FaultPlan& fault : plan_.faults) {
      world_.At(fault.at, [this, &fault] { Begin(fault); });
    }
    RunResult result;
    world_.Run(absl::Seconds(1) + plan_.chaos, [] { return false; });
    Heal();
    result.healed = world_.now();
    if (!world_.Run(world_.now() + kPeaceMax, [this] { return Quiet(); })) DemandLiveness();
    if (!world_.violation()) history_.CheckPoison();
    result.violation = world_.violation();
    result.trace = world_.trace();
    result.digest = world_.digest();
    result.events = world_.events();
    result.ended = world_.now();
    history_.counters().peace_max = result.ended - result.healed;
    result.counters = history_.counters();
    return result;
  }

 private:
  void Schedule(const RequestPlan& request) {
    SimCoordinator& coordinator = *coordinators_[static_cast<size_t>(request.coordinator)];
    world_.At(request.at, [&coordinator, &request] { coordinator.Submit(request); });
    if (request.cancel_after == absl::InfiniteDuration()) return;
    world_.At(request.at + request.cancel_after,
              [&coordinator, &request] { coordinator.ClientCancels(request.number); });
  }

  void Begin(const FaultPlan& fault) {
    if (world_.tracing()) world_.Note(0, absl::StrCat("FAULT ", Describe(fault)));
    SimGroup& group = *groups_[static_cast<size_t>(fault.group)];
    const absl::Duration end = fault.at + fault.duration;
    switch (fault.kind) {
      case FaultKind::kCrash:
        return group.Crash(fault.duration, /*silently=*/false);
      case FaultKind::kPowerLoss:
        return group.Crash(fault.duration, /*silently=*/true);
      case FaultKind::kHang:
        group.Hang();
        return world_.At(end, [&group] { group.Continue(); });
      case FaultKind::kStuck:
        return group.Stick();
      case FaultKind::kSlow:
        group.set_slow(10.0);
        return world_.At(end, [&group] { group.set_slow(1.0); });
      case FaultKind::kDrain:
        return group.Drain(fault.duration, "");
      case FaultKind::kNewBuild:
        return group.Drain(fault.duration, group.fingerprint() == "build-a" ? "build-c" : "build-a");
      case FaultKind::kReform:
        return group.Reform();
      case FaultKind::kStorm:
        group.set_storm(4);
        return group.Crash(absl::Milliseconds(500), /*silently=*/false);
      case FaultKind::kCoordinatorCrash: {
        SimCoordinator& coordinator = *coordinators_[static_cast<size_t>(fault.coordinator)];
        if (!coordinator.up()) return;
        coordinator.Crash(/*silently=*/false);
        return world_.At(end, [&coordinator] { coordinator.Start(); });
      }
      default:
        return BeginOnLink(fault);
    }
  }

  void BeginOnLink(const FaultPlan& fault) {
    const int c = fault.coordinator, g = fault.group;
    const absl::Duration end = fault.at + fault.duration;
    if (fault.kind == FaultKind::kBlockToGroup || fault.kind == FaultKind::kBlockBoth) {
      network_.Block(c, g, Side::kGroup);
      world_.At(end, [this, c, g] { network_.Unblock(c, g, Side::kGroup); });
    }
    if (fault.kind == FaultKind::kBlockToCoordinator || fault.kind == FaultKind::kBlockBoth) {
      network_.Block(c, g, Side::kCoordinator);
      world_.At(end, [this, c, g] { network_.Unblock(c, g, Side::kCoordinator); });
    }
    if (fault.kind == FaultKind::kDelay) {
      network_.SetDelay(c, g, absl::Milliseconds(200));
      world_.At(end, [this, c, g] { network_.SetDelay(c, g, absl::ZeroDuration()); });
    }
    if (fault.kind == FaultKind::kBreak) network_.Break(c, g, /*half_open=*/false);
    if (fault.kind == FaultKind::kHalfOpen) network_.Break(c, g, /*half_open=*/true);
  }

  void Heal() {
    world_.Note(0, "all faults heal");
    for (size_t c = 0; c < coordinators_.size(); ++c) {
      for (size_t g = 0; g < groups_.size(); ++g) {
        network_.Unblock(static_cast<int>(c), static_cast<int>(g), Side::kGroup);
        network_.Unblock(static_cast<int>(c), static_cast<int>(g), Side::kCoordinator);
        network_.SetDelay(static_cast<int>(c), static_cast<int>(g), absl::ZeroDuration());
      }
      if (!coordinators_[c]->up()) coordinators_[c]->Start();
    }
    for (const auto& group : groups_) {
      group->set_slow(1.0);
      group->set_storm(0);
      group->Continue();
    }
  }

  bool Quiet() const { return history_.AllEnded() && (world_.events() % 8 == 0) && Residue().empty(); }

  std::string Residue() const {
    for (const auto& coordinator : coordinators_) {
      if (std::string residue = coordinator->Residue(); !residue.empty()) return residue;
    }
    for (const auto& group : groups_) {
      if (std::string residue = group->Residue(); !residue.empty()) return residue;
    }
    return "";
  }

  void DemandLiveness() {
    for (const auto& [number, request] : history_.requests()) {
      if (request.outcome == Outcome::kNone) return world_.Violate(number, "liveness", "never ended");
    }
    if (const std::string residue = Residue(); !residue.empty()) world_.Violate(0, "residue", residue);
  }

  const Plan& plan_;
  World world_;
  Network network_;
  History history_;
  std::vector<std::unique_ptr<SimGroup>> groups_;
  std::vector<std::unique_ptr<SimCoordinator>> coordinators_;
};

}  // namespace

RunResult RunPlan(const Plan& plan, Mutant mutant, bool tracing) { return Simulation(plan, mutant, tracing).Run(); }

}  // namespace quicksilver::simulation
