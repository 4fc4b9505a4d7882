#pragma once

#include <string>
#include <vector>

namespace quicksilver {

/// `quicksilver generate`: streams answers from a coordinator over gRPC onto the terminal. Returns the exit code.
int RunGenerate(const std::vector<std::string>& arguments);

}  // namespace quicksilver
