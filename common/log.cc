#include "common/log.h"

#include <poll.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/utf8.h"

namespace quicksilver {
namespace {

struct State {
  std::shared_ptr<spdlog::logger> logger;
  std::string component = "quicksilver";
  Mutex write_mutex;  // Held from the look at stderr to the end of the write.
  uint64_t told GUARDED_BY(write_mutex) = 0;
  std::atomic<uint64_t> dropped = 0;
};

State& GlobalState() {
  static State* const state = [] {
    auto* s = new State;  // Lives as long as the process: threads may log while statics are torn down.
    s->logger = std::make_shared<spdlog::logger>("quicksilver", std::make_shared<spdlog::sinks::stderr_sink_st>());
    s->logger->set_pattern("%v");
    s->logger->set_level(spdlog::level::info);
    s->logger->flush_on(spdlog::level::debug);
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

// Whether a line can be written without waiting: a pipe takes PIPE_BUF bytes then, a file always does.
bool StderrTakes() {
  pollfd descriptor = {STDERR_FILENO, POLLOUT, 0};
  return poll(&descriptor, 1, 0) == 1 && (descriptor.revents & POLLOUT) != 0;
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
  if (!StderrTakes()) {
    ++state.dropped;
    return;
  }
  const uint64_t dropped = state.dropped;
  if (dropped != state.told)
    line += ",\"lines_dropped\":" + std::to_string(dropped - std::exchange(state.told, dropped));
  line += "}";
  state.logger->log(ToSpdlog(level), "{}", line);
}

uint64_t LogLinesDropped() { return GlobalState().dropped; }

}  // namespace quicksilver
