#include "tests/text/fuzz_inputs.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  quicksilver::TryAsTokenizerJson({reinterpret_cast<const char*>(data), size});
  return 0;
}
