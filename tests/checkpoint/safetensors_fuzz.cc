#include "tests/checkpoint/safetensors_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  quicksilver::FuzzSafetensorsHeader(data, size);
  return 0;
}
