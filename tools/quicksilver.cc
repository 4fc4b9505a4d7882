// The `quicksilver` command: one program with sub-commands for people at a terminal.
#include <cstdio>
#include <string>
#include <vector>

#include "common/exit_codes.h"
#include "common/options.h"
#include "tools/bench_serve/bench_serve.h"
#include "tools/generate.h"
#include "tools/inspect.h"

namespace quicksilver {
namespace {

constexpr const char* kUsage =
    "usage: quicksilver COMMAND [options]\n"
    "  generate PROMPT…   stream answers onto the terminal, the canvas visibly filling in\n"
    "  bench serve        put a load on a server with an OpenAI-compatible API and report what its clients see\n"
    "  inspect DIR        what a checkpoint holds, what each rank would hold, the floor per step, any fault\n"
    "  help, --version\n"
    "Every command explains itself with --help.\n";

int Run(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  const std::vector<std::string> arguments(argv + (argc > 1 ? 2 : 1), argv + argc);
  if (command == "generate") return RunGenerate(arguments);
  if (command == "inspect") return RunInspect(arguments);
  if (command == "bench" && !arguments.empty() && arguments[0] == "serve") {
    return RunBenchServe({arguments.begin() + 1, arguments.end()});
  }
  if (command == "--version") {
    std::printf("%s\n", VersionString().c_str());
    return kExitOk;
  }
  if (command == "help" || command == "--help" || command == "-h") {
    std::fputs(kUsage, stdout);
    return kExitOk;
  }
  std::fprintf(stderr, "quicksilver: %s\n%s",
               command.empty() ? "no command" : ("unknown command '" + command + "'").c_str(), kUsage);
  return kExitUsage;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Run(argc, argv); }
