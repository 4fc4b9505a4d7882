#pragma once

#include <string>
#include <vector>

namespace quicksilver {

/// `quicksilver bench serve`: puts a load on a server with an OpenAI-compatible API and reports what its clients see.
/// Returns the exit code.
int RunBenchServe(const std::vector<std::string>& arguments);

}  // namespace quicksilver
