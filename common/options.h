#pragma once

#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace quicksilver {

/// Parses a program's settings: command line, then environment, then a YAML file, then defaults; the first that names
/// an option wins. The environment name of `--foo-bar` is `QUICKSILVER_FOO_BAR`. The file is named by `--config` (or
/// QUICKSILVER_CONFIG) and holds one flat map from option names, without dashes in front, to values (a list for a
/// repeated option). Adds `--config` and `--version` to `app`. Returns the exit code when the program should end now:
/// kExitOk after --help or --version, kExitUsage after one line on stderr that names the option, the value, where it
/// came from (flag, variable or file:line) and what to do.
std::optional<int> ParseOptions(CLI::App& app, int argc, const char* const* argv);

/// The version that programs report.
std::string VersionString();

}  // namespace quicksilver
