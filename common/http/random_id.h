#pragma once

#include <cstddef>
#include <string>

namespace quicksilver::http {

/// `bytes` bytes from the operating system's generator, as twice as many hex digits.
std::string RandomHex(size_t bytes);

}  // namespace quicksilver::http
