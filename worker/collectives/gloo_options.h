#pragma once

#include <string>

#include "absl/time/time.h"

namespace quicksilver {

/// How a rank waits for its peers.
enum class CollectiveWait {
  kAuto,   ///< kSpin when every rank of this host has a core of its own, else kBlock.
  kSpin,   ///< Polls for a moment before it sleeps: a sleeping core takes tens of microseconds to wake.
  kBlock,  ///< Sleeps at once: with more ranks than cores a spinning rank starves the one that it waits for.
};

struct GlooOptions {
  int rank = 0;
  int size = 1;
  int host_ranks = 0;          ///< Ranks on this host; 0: all of them.
  std::string hostname;        ///< Name or address of this host that the peers reach. Empty: by `interface`.
  std::string interface_name;  ///< Network interface. Both empty: loopback.
  absl::Duration timeout = absl::Seconds(5);
  CollectiveWait wait = CollectiveWait::kAuto;
};

}  // namespace quicksilver
