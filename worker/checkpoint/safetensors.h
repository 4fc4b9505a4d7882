#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "worker/checkpoint/checkpoint.h"

namespace quicksilver {

/// A safetensors file: the header's length (8 bytes, little-endian), the header (JSON), the data section.
inline constexpr uint64_t kSafetensorsPrefixBytes = 8;
inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;
inline constexpr size_t kSafetensorsTensorsMax = 1 << 18;
inline constexpr size_t kSafetensorsDimensionsMax = 8;
inline constexpr size_t kSafetensorsNameBytesMax = 512;

/// Parses and validates the header of one file: known types, no name twice, every size = shape x type without overflow,
/// and the data section of `data_bytes` bytes covered exactly once. Offsets of the result count from the start of the
/// data section; by name. InvalidArgument: one line that starts with `file`. Allocates no block larger than twice the
/// header. Pure.
absl::StatusOr<std::deque<StoredTensor>> ParseSafetensorsHeader(const std::string& file, std::string_view header,
                                                                uint64_t data_bytes);

/// A name from a file as it may stand in a message: one line, printable, of bounded length.
std::string PrintableName(const std::string& name);

}  // namespace quicksilver
