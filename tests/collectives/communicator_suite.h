#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tests/collectives/group_of_threads.h"
#include "tests/collectives/parts.h"
#include "tests/collectives/rank_memory.h"
#include "worker/collectives/communicator.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

/// One rank of a group, as an implementation makes it.
struct RankMember {
  std::unique_ptr<RankMemory> memory;
  std::unique_ptr<Communicator> group;
};

/// What the conformance suite runs on: one thread a rank.
struct CommunicatorKind {
  std::string name;
  int ranks;
  std::function<absl::StatusOr<RankMember>(int rank, int ranks, RendezvousStore&)> make;
  /// Why the kind cannot be tested here; empty: it can.
  std::function<std::string()> missing = [] { return std::string(); };
};

/// The suite of every Communicator (communicator_suite.cc). A test program compiles it and instantiates it with its
/// kinds.
class CommunicatorTest : public ::testing::TestWithParam<CommunicatorKind> {
 protected:
  void SetUp() override {
    if (const std::string missing = GetParam().missing(); !missing.empty()) GTEST_SKIP() << missing;
  }
  int ranks() const { return GetParam().ranks; }
  void WithGroup(const std::function<void(int rank, Communicator& group, RankMemory& memory)>& body);
};

}  // namespace quicksilver
