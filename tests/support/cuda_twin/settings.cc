#include "tests/support/cuda_twin/settings.h"

#include <cstdlib>
#include <string>

namespace quicksilver::cuda_twin {
namespace {

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

const EnvironmentSettings& Environment() {
  static const EnvironmentSettings settings = {
      .thread_order_seed = std::strtoull(Variable("QUICKSILVER_CUDA_TWIN_SEED").c_str(), nullptr, 10),
      .deferred = Variable("QUICKSILVER_CUDA_TWIN_DEFERRED") == "1",
      .shared = Variable("QUICKSILVER_CUDA_TWIN_SHARED") == "1"};
  return settings;
}

ExecutionSettings& Execution() {
  static ExecutionSettings settings;
  return settings;
}

}  // namespace quicksilver::cuda_twin
