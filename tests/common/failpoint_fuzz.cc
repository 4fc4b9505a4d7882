#include <cstdint>

#include "common/failpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quicksilver::InitFailpoints(true, {reinterpret_cast<const char*>(data), size}, 0).IgnoreError();
  return 0;
}
