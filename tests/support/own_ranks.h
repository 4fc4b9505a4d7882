#pragma once

#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

extern char** environ;

namespace quicksilver {

/// Starts this very program `ranks` times, rank r with arguments_of(r) behind its name, and waits for all of them.
/// Returns the exit code for the parent: 0 when every one ended with 0.
inline int RunOwnRanks(int ranks, const std::function<std::vector<std::string>(int rank)>& arguments_of) {
  std::vector<pid_t> started;
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<std::string> arguments = arguments_of(rank);
    arguments.insert(arguments.begin(), "rank");
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    pid_t pid = 0;
    if (posix_spawn(&pid, "/proc/self/exe", nullptr, nullptr, pointers.data(), environ) != 0) return 1;
    started.push_back(pid);
  }
  int worst = 0;
  for (const pid_t pid : started) {
    int status = 0;
    waitpid(pid, &status, 0);
    worst = std::max(worst, status);
  }
  return worst == 0 ? 0 : 1;
}

}  // namespace quicksilver
