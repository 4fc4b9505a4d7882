#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quicksilver/v1/worker.pb.h"

namespace quicksilver {

/// One written token of a recorded step. Positions count from the row's first real token.
struct GoldenCommit {
  int32_t position = 0;
  int32_t token = 0;
  float confidence = 0.0f;
};

/// What a recorded trace says about one of its prompts.
struct GoldenRow {
  v1::Submit submit;                             ///< What reproduces it.
  std::vector<std::vector<GoldenCommit>> steps;  ///< Without steps that write nothing; ascending positions.
};

struct GoldenTrace {
  std::string name;
  std::string family;
  std::string kind;
  int32_t mask_id = -1;         ///< -1: the checkpoint's.
  int32_t grid_block = 0;       ///< Block length that the group has to be started with; 0: the request's own.
  std::string unsupported;      ///< Why it cannot be run here; empty when it can.
  std::vector<GoldenRow> rows;  ///< Empty when unsupported.
};

struct GoldenCheckpoint {
  std::string directory;
  std::string name;
  std::string family;
  int32_t mask_id = -1;  ///< As the traces of its family have it, for one that does not state it.
};

/// A directory of recorded decodings: manifest.json, checkpoints, traces.
struct GoldenSet {
  std::vector<GoldenCheckpoint> checkpoints;
  std::vector<GoldenTrace> traces;
};

/// NotFound: no manifest or a file that it names. InvalidArgument: a file is not what the format says.
absl::StatusOr<GoldenSet> ReadGoldenSet(const std::string& directory);

}  // namespace quicksilver
