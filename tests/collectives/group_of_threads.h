#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "worker/collectives/gloo_communicator.h"
#include "worker/collectives/gloo_control.h"
#include "worker/collectives/local_communicator.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

/// Runs `body` once a rank, each in a thread of its own.
inline void RunRanks(int ranks, const std::function<void(int rank)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back([&body, rank] { body(rank); });
  for (std::thread& thread : threads) thread.join();
}

inline GlooOptions GlooOptionsFor(int rank, int ranks, absl::Duration timeout) {
  GlooOptions options;
  options.rank = rank;
  options.size = ranks;
  options.timeout = timeout;
  return options;
}

}  // namespace quicksilver
