// Lets tests of processes set up the CUDA twin by the environment, before main() begins:
//   TWIN_DEVICES=2  TWIN_MEMORY_BYTES=1000000000  TWIN_COMPUTE_CAPABILITY=8.0
//   TWIN_FAIL=FUNCTION:NTH:ERROR   (as TwinControl::FailCall; ERROR is a cudaError_t's number)
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "tests/support/cuda_twin/twin_device.h"

namespace quicksilver::cuda_twin {
namespace {

int64_t Number(const std::string& text) {
  int64_t number = 0;
  if (!absl::SimpleAtoi(text, &number)) {
    std::fprintf(stderr, "TWIN_*: '%s' is not a number\n", text.c_str());
    std::abort();
  }
  return number;
}

const bool settings_read = [] {
  if (const char* text = std::getenv("TWIN_DEVICES")) TwinDevice().SetDeviceCount(static_cast<int>(Number(text)));
  if (const char* text = std::getenv("TWIN_MEMORY_BYTES")) {
    TwinDevice().SetTotalMemory(static_cast<size_t>(Number(text)));
  }
  if (const char* text = std::getenv("TWIN_COMPUTE_CAPABILITY")) {
    const std::vector<std::string> parts = absl::StrSplit(text, '.');
    TwinDevice().SetComputeCapability(static_cast<int>(Number(parts.at(0))), static_cast<int>(Number(parts.at(1))));
  }
  if (const char* text = std::getenv("TWIN_FAIL")) {
    const std::vector<std::string> parts = absl::StrSplit(text, ':');
    TwinDevice().FailCall(parts.at(0), static_cast<int>(Number(parts.at(1))),
                          static_cast<cudaError_t>(Number(parts.at(2))));
  }
  return true;
}();

}  // namespace
}  // namespace quicksilver::cuda_twin
