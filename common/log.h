#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace quicksilver {

/// One extra field of a log line. Never prompt or completion text, headers or keys.
struct LogField {
  std::string_view key;
  std::string value;  ///< JSON already: quoted and escaped, or a number.

  LogField(std::string_view k, std::string_view v);
  LogField(std::string_view k, const char* v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, const std::string& v) : LogField(k, std::string_view(v)) {}
  LogField(std::string_view k, bool v) : key(k), value(v ? "true" : "false") {}
  LogField(std::string_view k, double v);
  template <std::integral T>
  LogField(std::string_view k, T v) : key(k), value(std::to_string(v)) {}
};

using LogFields = std::initializer_list<LogField>;

enum class LogLevel { kDebug, kInfo, kWarning, kError };

/// Call once in main, before threads. `component` ("coordinator", "worker", …) is part of every line. Lines are one
/// JSON object each on stderr: ts (RFC 3339, UTC, ms), level, component, msg, then the fields. `level`: debug, info,
/// warning or error. Returns false for another word.
bool InitLog(std::string_view component, std::string_view level);

/// Thread-safe. Before InitLog everything from info up is written. Waits for no reader of a pipe, socket or terminal.
void Log(LogLevel level, std::string_view message, LogFields fields = {});

inline void LogDebug(std::string_view message, LogFields fields = {}) { Log(LogLevel::kDebug, message, fields); }
inline void LogInfo(std::string_view message, LogFields fields = {}) { Log(LogLevel::kInfo, message, fields); }
inline void LogWarning(std::string_view message, LogFields fields = {}) { Log(LogLevel::kWarning, message, fields); }
inline void LogError(std::string_view message, LogFields fields = {}) { Log(LogLevel::kError, message, fields); }

/// Lines that were not written, or not to their end: nobody takes what is on stderr, which must not stop the service.
/// The next line that is written begins on a line of its own and says how many were lost before it.
uint64_t LogLinesDropped();

/// `text` as a JSON string, quotes included. Bytes that are not UTF-8 become U+FFFD.
std::string JsonQuoted(std::string_view text);

}  // namespace quicksilver
