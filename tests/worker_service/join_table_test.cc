#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "worker/service/group_service.h"

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(20);
const Agreement kAgreement = {{"model digest", "aa"}, {"dtype", "f32"}};

TEST(JoinTableTest, EveryRankWaitsForTheLast) {
  JoinTable table(3, 7);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.emplace_back([&table, rank] {
      absl::SleepFor(absl::Milliseconds(30 * rank));
      EXPECT_TRUE(table.Join(rank, 7, kAgreement, kLong).ok());
    });
  }
  for (std::thread& rank : ranks) rank.join();
}

TEST(JoinTableTest, ADifferenceIsToldToEveryRankWithFieldAndBothValues) {
  JoinTable table(3, 7);
  absl::Status first, second;
  std::thread zero([&] { first = table.Join(0, 7, kAgreement, kLong); });
  std::thread one([&] { second = table.Join(1, 7, kAgreement, kLong); });
  absl::SleepFor(absl::Milliseconds(50));
  Agreement other = kAgreement;
  other["model digest"] = "bb";
  const absl::Status third = table.Join(2, 7, other, kLong);
  zero.join();
  one.join();
  for (const absl::Status& status : {first, second, third}) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status));
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("model digest"), HasSubstr("'aa'"), HasSubstr("'bb' on rank 2")));
  }
}

TEST(JoinTableTest, AFieldThatOneRankLacksIsADifference) {
  JoinTable table(2, 7);
  std::thread zero([&] { EXPECT_TRUE(absl::IsFailedPrecondition(table.Join(0, 7, kAgreement, kLong))); });
  absl::SleepFor(absl::Milliseconds(30));
  const absl::Status status = table.Join(1, 7, {{"dtype", "f32"}}, kLong);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model digest is 'aa' on rank 0 and 'none' on rank 1"));
  zero.join();
}

TEST(JoinTableTest, MissingRanksAreNamed) {
  JoinTable table(4, 7);
  std::thread two([&] { EXPECT_TRUE(absl::IsDeadlineExceeded(table.Join(2, 7, kAgreement, absl::Seconds(1)))); });
  const absl::Status status = table.Join(0, 7, kAgreement, absl::Seconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("ranks 1, 3 of 4 missing after 1s"));
  two.join();
}

TEST(JoinTableTest, ARankOfAnotherEpochIsTurnedAwayAndTheGroupStillForms) {
  JoinTable table(2, 7);
  EXPECT_TRUE(absl::IsAborted(table.Join(1, 6, kAgreement, kLong)));
  std::thread zero([&] { EXPECT_TRUE(table.Join(0, 7, kAgreement, kLong).ok()); });
  EXPECT_TRUE(table.Join(1, 7, kAgreement, kLong).ok());
  zero.join();
}

TEST(JoinTableTest, ARankThatComesTwiceAndOneBeyondTheSizeAreRefused) {
  JoinTable table(2, 7);
  EXPECT_TRUE(absl::IsFailedPrecondition(table.Join(2, 7, kAgreement, kLong)));
  std::thread zero([&] { EXPECT_TRUE(absl::IsFailedPrecondition(table.Join(0, 7, kAgreement, kLong))); });
  absl::SleepFor(absl::Milliseconds(30));
  EXPECT_THAT(std::string(table.Join(0, 7, kAgreement, kLong).message()), HasSubstr("rank 0 has joined twice"));
  zero.join();
}

class GroupServiceTest : public ::testing::Test {
 protected:
  const std::string address_ = absl::StrCat("unix-abstract:group-service-test-", getpid());
  JoinTable table_{2, 7};
  MemoryRendezvous store_;
};

TEST_F(GroupServiceTest, CarriesJoinsAndKeysOverTheWire) {
  const auto server = GroupServer::Start(address_, table_, store_, kLong);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = GroupClient::Make(address_);
  std::thread zero([&] { EXPECT_TRUE(table_.Join(0, 7, kAgreement, kLong).ok()); });
  EXPECT_TRUE(client->Join(1, 7, kAgreement, kLong).ok());
  zero.join();
  std::thread later([&] {
    absl::SleepFor(absl::Milliseconds(50));
    EXPECT_TRUE(store_.Put("b", std::string("\0\xff", 2)).ok());
  });
  EXPECT_TRUE(client->Put("a", "1").ok());
  const auto values = client->Get({"a", "b"}, kLong);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_THAT(*values, ::testing::ElementsAre("1", std::string("\0\xff", 2)));
  EXPECT_TRUE(absl::IsAlreadyExists(client->Put("a", "2")));
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->Get({"c"}, absl::Milliseconds(100)).status()));
  later.join();
}

TEST_F(GroupServiceTest, AFollowerWithoutALeaderSaysWhere) {
  const auto client = GroupClient::Make(address_);
  const absl::Status status = client->Join(1, 7, kAgreement, absl::Milliseconds(100));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("rank 0"), HasSubstr(address_)));
}

TEST_F(GroupServiceTest, TheLeaderMayComeLater) {
  std::thread one([&] { EXPECT_TRUE(GroupClient::Make(address_)->Join(1, 7, kAgreement, kLong).ok()); });
  absl::SleepFor(absl::Milliseconds(300));
  const auto server = GroupServer::Start(address_, table_, store_, kLong);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(table_.Join(0, 7, kAgreement, kLong).ok());
  one.join();
}

}  // namespace
}  // namespace quicksilver
