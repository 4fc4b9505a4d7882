#include "tools/gpu/rank_processes.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "tests/support/file_rendezvous.h"
#include "tests/support/temp_directory.h"
#include "worker/collectives/cuda/ipc_communicator.h"

namespace quicksilver {
namespace {

constexpr absl::Duration kFormation = absl::Seconds(120);   // Both load a model first.
constexpr absl::Duration kPeerTimeout = absl::Seconds(20);  // The ranks take turns on the device.

/// A program's standard output.
class Process {
 public:
  explicit Process(const std::string& command) : output_(popen(command.c_str(), "r")) {}
  Process(Process&& other) noexcept : output_(std::exchange(other.output_, nullptr)) {}
  ~Process() { Finish(nullptr); }

  /// True when it could be started and has ended well.
  bool Finish(std::string* text) {
    if (output_ == nullptr) return false;
    char bytes[4096];
    for (size_t count; (count = std::fread(bytes, 1, sizeof(bytes), output_)) > 0;) {
      if (text != nullptr) text->append(bytes, count);
    }
    return pclose(std::exchange(output_, nullptr)) == 0;
  }

 private:
  std::FILE* output_;
};

std::string Quoted(const std::string& path) {
  return absl::StrCat("'", absl::StrReplaceAll(path, {{"'", "'\\''"}}), "'");
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunRanks(const std::string& name, int ranks, bool toy, int device,
                                                const Ceilings& ceilings) {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::InternalError(absl::StrCat("/proc/self/exe: ", error.message()));
  const TempDirectory meeting;
  std::vector<Process> processes;
  for (int rank = 0; rank < ranks; ++rank) {
    processes.emplace_back(absl::StrCat(
        Quoted(program), " --only=", name, " --device=", device, " --rank=", rank,
        " --rendezvous=", Quoted(meeting.path()), " --ceilings=", ceilings.copy_bytes_per_second * 1e-9, ",",
        ceilings.bf16_flops_per_second * 1e-12, ",", ceilings.fp8_flops_per_second * 1e-12, toy ? " --toy" : ""));
  }
  std::string first;
  bool good = true;
  for (int rank = 0; rank < ranks; ++rank) {
    std::string text;
    good = processes[static_cast<size_t>(rank)].Finish(&text) && good;
    if (rank == 0) first = text;
  }
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(first, '\n'))) {
    nlohmann::ordered_json row = nlohmann::ordered_json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (good && row.is_object() && row.value("kind", "") == "step") return row;
  }
  return absl::InternalError(absl::StrCat("a process of the ", ranks, " ranks failed: see its message above"));
}

absl::StatusOr<std::unique_ptr<Communicator>> JoinRanks(int rank, int ranks, const std::string& rendezvous,
                                                        cudaStream_t stream) {
  FileRendezvous store(rendezvous);
  IpcOptions options;
  options.rank = rank;
  options.size = ranks;
  options.timeout = kPeerTimeout;
  return MakeIpcCommunicator(options, stream, store, kFormation);
}

}  // namespace quicksilver
