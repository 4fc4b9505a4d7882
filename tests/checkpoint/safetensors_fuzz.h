#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "worker/checkpoint/safetensors.h"

namespace quicksilver {

/// One input of the fuzzer: the first byte is the size of the data section, the rest the header. Whatever is accepted
/// must lie within the data, cover it, and have names in order.
inline void FuzzSafetensorsHeader(const uint8_t* data, size_t size) {
  if (size == 0) return;
  const uint64_t data_bytes = data[0];
  const std::string_view header(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto parsed = ParseSafetensorsHeader("fuzz", header, data_bytes);
  if (!parsed.ok()) {
    CHECK(!parsed.status().message().empty());
    return;
  }
  uint64_t covered = 0;
  for (size_t i = 0; i < parsed->size(); ++i) {
    const StoredTensor& tensor = (*parsed)[i];
    CHECK(tensor.offset <= data_bytes && tensor.bytes <= data_bytes - tensor.offset);
    CHECK(i == 0 || (*parsed)[i - 1].name < tensor.name);
    covered += tensor.bytes;
  }
  CHECK(covered == data_bytes);
}

}  // namespace quicksilver
