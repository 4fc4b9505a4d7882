#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coordinator/core/dispatcher.h"

// What the stories about the dispatcher are told with.
namespace quicksilver {

inline constexpr absl::Duration kStart = absl::Seconds(1000);
inline constexpr RequestId kFirst{1}, kSecond{2}, kThird{3}, kFourth{4}, kFifth{5};
inline constexpr Connection kA{GroupId{0}, 1}, kB{GroupId{1}, 1}, kC{GroupId{2}, 1};

inline Admission Ask(RequestId id, uint32_t choices = 1, uint64_t positions = 100) {
  return {.id = id,
          .model = "m",
          .choices = choices,
          .prompt_tokens = static_cast<uint32_t>(positions),
          .accepted = kStart};
}

inline Admission AskAs(RequestId id, Priority priority) {
  Admission admission = Ask(id);
  admission.priority = priority;
  return admission;
}

inline GroupFacts Facts(uint32_t sequences_max, const std::string& fingerprint = "same", uint64_t epoch = 7) {
  return {
      .epoch = epoch, .model = "m", .fingerprint = fingerprint, .sequences_max = sequences_max, .positions_max = 10000};
}

inline Actions Beat(Dispatcher& dispatcher, Connection connection, absl::Duration now = kStart) {
  return dispatcher.OnHeartbeat(connection, {.epoch = 7, .ready = true}, now);
}

inline Actions Join(Dispatcher& dispatcher, Connection connection, uint32_t sequences_max,
                    const std::string& fingerprint = "same", absl::Duration now = kStart) {
  EXPECT_THAT(dispatcher.OnGroupJoined(connection, Facts(sequences_max, fingerprint), now), testing::IsEmpty());
  return Beat(dispatcher, connection, now);
}

template <typename T>
std::vector<T> Of(const Actions& actions) {
  std::vector<T> found;
  for (const Action& action : actions) {
    if (const T* one = std::get_if<T>(&action)) found.push_back(*one);
  }
  return found;
}

inline std::vector<std::string> Codes(const Actions& actions) {
  std::vector<std::string> codes;
  for (const FailRequest& failed : Of<FailRequest>(actions)) codes.push_back(failed.error.code);
  return codes;
}

inline std::vector<RequestId> Failed(const Actions& actions) {
  std::vector<RequestId> requests;
  for (const FailRequest& failed : Of<FailRequest>(actions)) requests.push_back(failed.request);
  return requests;
}

inline std::vector<RequestId> Placed(const Actions& actions) {
  std::vector<RequestId> requests;
  for (const SubmitSequence& submit : Of<SubmitSequence>(actions)) requests.push_back(submit.request);
  return requests;
}

inline SubmitSequence OnlySubmit(const Actions& actions) {
  const auto submits = Of<SubmitSequence>(actions);
  EXPECT_EQ(submits.size(), 1u);
  return submits.empty() ? SubmitSequence{} : submits.front();
}

inline SequenceId OnlySequence(const Actions& actions) { return OnlySubmit(actions).sequence; }

/// The connection of a group that came back.
inline Connection Again(Connection connection) { return {connection.group, connection.number + 1}; }

}  // namespace quicksilver
