#pragma once

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

extern char** environ;

namespace quicksilver {

/// A program that a test starts, with its standard output and error in one pipe. Killed and reaped at the end.
class ChildProcess {
 public:
  explicit ChildProcess(std::vector<std::string> arguments) {
    int ends[2];
    if (pipe(ends) != 0) return;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    if (posix_spawn(&pid_, pointers[0], &actions, nullptr, pointers.data(), environ) != 0) pid_ = -1;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    output_ = ends[0];
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess() {
    Kill(SIGKILL);
    Kill(SIGCONT);
    Wait(absl::Seconds(10));
    close(output_);
  }

  pid_t pid() const { return pid_; }
  void Kill(int number) const {
    if (pid_ > 0 && code_ < 0) kill(pid_, number);
  }

  /// True when `text` came on the output within `timeout`.
  bool WaitForOutput(const std::string& text, absl::Duration timeout) {
    const absl::Time deadline = absl::Now() + timeout;
    while (seen_.find(text) == std::string::npos) {
      if (!Read(deadline)) return false;
    }
    return true;
  }

  /// The exit code, 128 + signal, or -1 when it has not ended within `timeout`.
  int Wait(absl::Duration timeout) {
    const absl::Time deadline = absl::Now() + timeout;
    while (pid_ > 0 && code_ < 0) {
      int status = 0;
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        while (Read(absl::Now())) {
        }
        break;
      }
      if (absl::Now() >= deadline) return -1;
      Read(std::min(deadline, absl::Now() + absl::Milliseconds(10)));
    }
    return code_;
  }

  const std::string& output() const { return seen_; }

 private:
  bool Read(absl::Time deadline) {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd descriptor = {output_, POLLIN, 0};
    if (poll(&descriptor, 1, static_cast<int>(std::max<int64_t>(left, 0))) <= 0) return false;
    char bytes[4096];
    const ssize_t count = read(output_, bytes, sizeof(bytes));
    if (count <= 0) {
      if (deadline > absl::Now()) absl::SleepFor(absl::Milliseconds(2));  // The end of the pipe is always readable.
      return absl::Now() < deadline && count < 0;
    }
    seen_.append(bytes, static_cast<size_t>(count));
    return true;
  }

  pid_t pid_ = -1;
  int output_ = -1;
  int code_ = -1;
  std::string seen_;
};

}  // namespace quicksilver
