#pragma once

#include <cstdint>

namespace quicksilver {

/// A request inside one coordinator: never reused, unlike the id that a client chose.
enum class RequestId : uint64_t {};
/// A request's choice on a group. Never reused while the coordinator lives.
enum class SequenceId : uint64_t {};
/// The place of a group (an address), while it is known. Never reused.
enum class GroupId : uint32_t {};

/// One stream to a group. A group that is lost and comes back has a new connection, so that what is late can be told
/// from what is new.
struct Connection {
  GroupId group{};
  uint64_t number = 0;  ///< Ascends with each stream to this group.

  bool operator==(const Connection&) const = default;
};

}  // namespace quicksilver
