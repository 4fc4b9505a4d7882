#include "common/options.h"

#include <yaml-cpp/yaml.h>

#include <CLI/CLI.hpp>
#include <cctype>
#include <cstdlib>
#include <iostream>
#include <map>
#include <set>
#include <vector>

#include "common/exit_codes.h"

#ifndef QUICKSILVER_VERSION
#error "QUICKSILVER_VERSION comes from the build"
#endif

namespace quicksilver {
namespace {

/// A setting that did not come from the command line.
struct Setting {
  std::string value;
  std::string source;  // "variable QUICKSILVER_X" or "file:line"
};

using Settings = std::map<std::string, std::vector<Setting>>;  // by long option name

struct BadSettings {
  std::string message;
};

std::string EnvironmentName(const std::string& option) {
  std::string name = "QUICKSILVER_";
  for (const char c : option) name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return name;
}

std::set<std::string> LongNames(CLI::App& app) {
  std::set<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.insert(name);
  }
  names.erase("help");
  names.erase("version");
  return names;
}

/// Options named on the command line, and the value of --config there.
std::set<std::string> OnCommandLine(const std::vector<std::string>& arguments, std::string& config) {
  std::set<std::string> names;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& a = arguments[i];
    if (a == "--") break;
    if (a.rfind("--", 0) != 0) continue;
    const size_t equals = a.find('=');
    const std::string name = a.substr(2, equals == std::string::npos ? std::string::npos : equals - 2);
    names.insert(name);
    if (name == "config") {
      if (equals != std::string::npos) {
        config = a.substr(equals + 1);
      } else if (i + 1 < arguments.size()) {
        config = arguments[i + 1];
      }
    }
  }
  return names;
}

void AddFileValue(const std::string& where, const YAML::Node& node, std::vector<Setting>& out) {
  if (!node.IsScalar()) throw BadSettings{where + ": expected a scalar or a list of scalars"};
  out.push_back({node.Scalar(), where});
}

Settings ReadFile(const std::string& path, const std::set<std::string>& known) {
  Settings settings;
  YAML::Node root;
  try {
    root = YAML::LoadFile(path);
  } catch (const YAML::BadFile&) {
    throw BadSettings{path + ": cannot be read; check --config"};
  } catch (const YAML::Exception& e) {
    throw BadSettings{path + ":" + std::to_string(e.mark.line + 1) + ": " + e.msg};
  }
  if (root.IsNull()) return settings;
  if (!root.IsMap()) throw BadSettings{path + ":1: expected a map from option names to values"};
  for (const auto& entry : root) {
    const std::string where = path + ":" + std::to_string(entry.first.Mark().line + 1);
    const std::string name = entry.first.IsScalar() ? entry.first.Scalar() : "";
    if (known.count(name) == 0 || name == "config") {
      throw BadSettings{where + ": unknown option '" + name + "'; --help lists the options"};
    }
    if (settings.count(name) != 0) throw BadSettings{where + ": option '" + name + "' is given twice"};
    std::vector<Setting>& values = settings[name];
    if (entry.second.IsSequence()) {
      for (const YAML::Node& item : entry.second) AddFileValue(where, item, values);
    } else {
      AddFileValue(where, entry.second, values);
    }
  }
  return settings;
}

Settings OtherSettings(CLI::App& app, const std::vector<std::string>& arguments) {
  const std::set<std::string> known = LongNames(app);
  std::string config;
  const std::set<std::string> given = OnCommandLine(arguments, config);
  if (config.empty()) {
    const char* variable = std::getenv("QUICKSILVER_CONFIG");
    if (variable != nullptr) config = variable;
  }
  Settings settings;
  if (!config.empty()) settings = ReadFile(config, known);
  for (const std::string& name : known) {
    const std::string variable = EnvironmentName(name);
    const char* value = name == "config" ? nullptr : std::getenv(variable.c_str());
    if (value != nullptr) settings[name] = {{value, "variable " + variable}};
  }
  for (const std::string& name : given) settings.erase(name);
  return settings;
}

}  // namespace

std::string VersionString() { return QUICKSILVER_VERSION; }

std::optional<int> ParseOptions(CLI::App& app, int argc, const char* const* argv) {
  std::string config;
  app.add_option("--config", config, "YAML file with settings: a flat map from option names to values");
  app.set_version_flag("--version", VersionString());
  std::vector<std::string> arguments(argv + 1, argv + argc);
  Settings others;
  try {
    others = OtherSettings(app, arguments);
    const size_t split = std::find(arguments.begin(), arguments.end(), "--") - arguments.begin();
    std::vector<std::string> extra;
    for (const auto& [name, values] : others) {
      for (const Setting& setting : values) extra.push_back("--" + name + "=" + setting.value);
    }
    arguments.insert(arguments.begin() + static_cast<std::ptrdiff_t>(split), extra.begin(), extra.end());
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes a vector from its end.
    app.parse(arguments);
    return std::nullopt;
  } catch (const BadSettings& bad) {
    std::cerr << app.get_name() << ": " << bad.message << "\n";
    return kExitUsage;
  } catch (const CLI::Success& success) {
    app.exit(success);  // Prints the help or the version.
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    std::string message = error.what();
    for (char& c : message) c = c == '\n' ? ' ' : c;
    std::string source;
    for (const auto& [name, values] : others) {
      if (!values.empty() && message.find("--" + name) != std::string::npos)
        source = " (from " + values[0].source + ")";
    }
    std::cerr << app.get_name() << ": " << message << source << "; see --help\n";
    return kExitUsage;
  }
}

}  // namespace quicksilver
