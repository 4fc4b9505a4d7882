#include "common/http/random_id.h"

#include <sys/random.h>

#include <array>
#include <cstdint>

#include "common/check.h"

namespace quicksilver::http {
namespace {

constexpr char kHex[] = "0123456789abcdef";

// Drawn in stock: one system call for many ids. getrandom() delivers up to 256 bytes whole.
struct Stock {
  std::array<uint8_t, 256> bytes;
  size_t used = sizeof(bytes);
};

uint8_t RandomByte() {
  thread_local Stock stock;
  if (stock.used == stock.bytes.size()) {
    CHECK(getrandom(stock.bytes.data(), stock.bytes.size(), 0) == static_cast<ssize_t>(stock.bytes.size()));
    stock.used = 0;
  }
  return stock.bytes[stock.used++];
}

}  // namespace

std::string RandomHex(size_t bytes) {
  std::string text;
  text.reserve(2 * bytes);
  for (size_t i = 0; i < bytes; ++i) {
    const uint8_t byte = RandomByte();
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

}  // namespace quicksilver::http
