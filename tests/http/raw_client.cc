#include "tests/http/raw_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/time/clock.h"
#include "common/check.h"

namespace quicksilver::http {

RawClient::RawClient(uint16_t port, int receive_buffer_bytes) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
  CHECK(fd_ >= 0);
  if (receive_buffer_bytes > 0) {
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(receive_buffer_bytes));
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
}

RawClient::~RawClient() { Close(); }

void RawClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void RawClient::CloseWriting() { shutdown(fd_, SHUT_WR); }

bool RawClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

RawClient::Got RawClient::Receive(absl::Duration timeout) {
  pollfd entry{fd_, POLLIN, 0};
  const int ready = poll(&entry, 1, static_cast<int>(absl::ToInt64Milliseconds(std::max(timeout, absl::Duration()))));
  if (ready == 0) return Got::kTimeout;
  std::array<char, 65536> chunk;
  const ssize_t n = recv(fd_, chunk.data(), chunk.size(), 0);
  if (n > 0) {
    buffer_.append(chunk.data(), static_cast<size_t>(n));
    return Got::kData;
  }
  return n == 0 ? Got::kEnd : Got::kReset;
}

bool RawClient::ReadUntil(std::string_view text, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (buffer_.find(text) == std::string::npos) {
    if (Receive(deadline - absl::Now()) != Got::kData) return false;
  }
  return true;
}

std::string RawClient::ReadAll(bool* reset, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  Got got = Got::kData;
  while (got == Got::kData) got = Receive(deadline - absl::Now());
  if (reset != nullptr) *reset = got == Got::kReset;
  return std::exchange(buffer_, {});
}

bool RawClient::ClosedWithin(absl::Duration timeout) {
  const Got got = Receive(timeout);
  return got == Got::kEnd || got == Got::kReset;
}

std::string RawClient::Reply::Header(std::string_view name) const {
  const std::string key = "\r\n" + std::string(name) + ": ";
  const size_t begin = head.find(key);
  if (begin == std::string::npos) return "";
  const size_t value = begin + key.size();
  return head.substr(value, head.find("\r\n", value) - value);
}

RawClient::Reply RawClient::Read(bool has_body) {
  Reply reply;
  if (!ReadUntil("\r\n\r\n")) return reply;
  const size_t head_end = buffer_.find("\r\n\r\n") + 4;
  reply.head = buffer_.substr(0, head_end);
  buffer_.erase(0, head_end);
  reply.status = std::atoi(reply.head.c_str() + std::strlen("HTTP/1.1 "));
  if (!has_body || reply.status < 200) return reply;
  if (reply.Header("transfer-encoding") == "chunked") {
    while (true) {
      if (!ReadUntil("\r\n")) return reply;
      const size_t size = std::strtoul(buffer_.c_str(), nullptr, 16);
      buffer_.erase(0, buffer_.find("\r\n") + 2);
      while (buffer_.size() < size + 2) {
        if (Receive(absl::Seconds(5)) != Got::kData) return reply;
      }
      reply.body += buffer_.substr(0, size);
      buffer_.erase(0, size + 2);
      if (size == 0) return reply;
    }
  }
  const size_t length = std::strtoul(reply.Header("content-length").c_str(), nullptr, 10);
  while (buffer_.size() < length) {
    if (Receive(absl::Seconds(5)) != Got::kData) break;
  }
  reply.body = buffer_.substr(0, length);
  buffer_.erase(0, std::min(length, buffer_.size()));
  return reply;
}

}  // namespace quicksilver::http
