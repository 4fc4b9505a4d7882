#include "common/log.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/utf8.h"

namespace quicksilver {
namespace {

// Where neither a flag of the write nor a descriptor of our own keeps it from waiting (a kernel before 6.4 and a pipe
// that another user made): what is ready takes PIPE_BUF bytes, unless another process is quicker.
ssize_t WriteIfReady(std::string_view text) {
  pollfd descriptor = {STDERR_FILENO, POLLOUT, 0};
  if (poll(&descriptor, 1, 0) != 1 || (descriptor.revents & POLLOUT) == 0) return -1;
  return write(STDERR_FILENO, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
}

// What stderr takes of `text` without waiting for whoever reads it; -1: nothing. Other processes write to the same
// pipe, so that no look beforehand would do, and have the same file description, so that its flags are not ours to
// change.
ssize_t WriteNow(std::string_view text) {
  struct stat status;
  if (fstat(STDERR_FILENO, &status) != 0) return -1;
  if (S_ISREG(status.st_mode)) return write(STDERR_FILENO, text.data(), text.size());
  if (S_ISSOCK(status.st_mode)) return send(STDERR_FILENO, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  const iovec piece = {const_cast<char*>(text.data()), text.size()};
  const ssize_t written = pwritev2(STDERR_FILENO, &piece, 1, -1, RWF_NOWAIT);
  if (written >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL)) return written;
  const int own = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (own < 0) return WriteIfReady(text);
  const ssize_t of_own = write(own, text.data(), text.size());
  close(own);
  return of_own;
}

class StderrSink : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
 public:
  uint64_t dropped() const { return dropped_; }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    std::string line = torn_ ? "\n" : "";
    line.append(message.payload.data(), message.payload.size()).append("\n");
    const ssize_t written = WriteNow(line);
    if (written > 0) torn_ = line[static_cast<size_t>(written) - 1] != '\n';
    if (written != static_cast<ssize_t>(line.size())) ++dropped_;
  }
  void flush_() override {}

 private:
  bool torn_ = false;  // Only a part of the last line was taken.
  std::atomic<uint64_t> dropped_ = 0;
};

struct State {
  std::shared_ptr<StderrSink> sink = std::make_shared<StderrSink>();
  std::shared_ptr<spdlog::logger> logger;
  std::string component = "quicksilver";
  Mutex write_mutex;
  uint64_t told GUARDED_BY(write_mutex) = 0;
};

State& GlobalState() {
  static State* const state = [] {
    auto* s = new State;  // Lives as long as the process: threads may log while statics are torn down.
    s->logger = std::make_shared<spdlog::logger>("quicksilver", s->sink);
    s->logger->set_level(spdlog::level::info);
    return s;
  }();
  return *state;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

const char* LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

}  // namespace

std::string JsonQuoted(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t length = Utf8CharacterLength(text);
    const unsigned char c = static_cast<unsigned char>(text[0]);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += text[0];
    } else if (c < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", c);
      out += escape;
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out + '"';
}

LogField::LogField(std::string_view k, std::string_view v) : key(k), value(JsonQuoted(v)) {}

LogField::LogField(std::string_view k, double v) : key(k) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", v);
  value = std::isfinite(v) ? text : "null";
}

bool InitLog(std::string_view component, std::string_view level) {
  State& state = GlobalState();
  state.component = std::string(component);
  if (level == "debug") {
    state.logger->set_level(spdlog::level::debug);
  } else if (level == "info") {
    state.logger->set_level(spdlog::level::info);
  } else if (level == "warning") {
    state.logger->set_level(spdlog::level::warn);
  } else if (level == "error") {
    state.logger->set_level(spdlog::level::err);
  } else {
    return false;
  }
  return true;
}

void Log(LogLevel level, std::string_view message, LogFields fields) {
  State& state = GlobalState();
  if (!state.logger->should_log(ToSpdlog(level))) return;
  std::string line = "{\"ts\":\"" + absl::FormatTime("%Y-%m-%d%ET%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone()) +
                     "\",\"level\":\"" + LevelName(level) + "\",\"component\":" + JsonQuoted(state.component) +
                     ",\"msg\":" + JsonQuoted(message);
  for (const LogField& field : fields) line += "," + JsonQuoted(field.key) + ":" + field.value;
  MutexLock lock(state.write_mutex);
  const uint64_t dropped = state.sink->dropped();
  if (dropped != state.told) line += ",\"lines_dropped\":" + std::to_string(dropped - state.told);
  state.logger->log(ToSpdlog(level), line + "}");
  if (state.sink->dropped() == dropped) state.told = dropped;
}

uint64_t LogLinesDropped() { return GlobalState().sink->dropped(); }

}  // namespace quicksilver
