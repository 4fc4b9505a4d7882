#include "coordinator/cluster/discovery.h"

#include <map>

#include "tests/coordinator/service_fixture.h"

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A name server that says what a test tells it to.
class Names : public std::enable_shared_from_this<Names> {
 public:
  void Set(std::vector<std::string> addresses) {
    MutexLock lock(mu_);
    addresses_ = std::move(addresses);
    failure_.clear();
    asked_ = 0;
  }
  void Fail(const std::string& why) {
    MutexLock lock(mu_);
    failure_ = why;
    asked_ = 0;
  }
  int asked() {
    MutexLock lock(mu_);
    return asked_;
  }
  Resolver resolver() {
    return [self = shared_from_this()](const HostPort&) { return self->Ask(); };
  }

 private:
  absl::StatusOr<std::vector<std::string>> Ask() {
    MutexLock lock(mu_);
    ++asked_;
    if (!failure_.empty()) return absl::UnavailableError(failure_);
    return addresses_;
  }

  Mutex mu_;
  std::vector<std::string> addresses_ GUARDED_BY(mu_);
  std::string failure_ GUARDED_BY(mu_) = "not yet";
  int asked_ GUARDED_BY(mu_) = 0;
};

TEST(WorkerSourceTest, IsAnAddressOrANameToLookUp) {
  const absl::StatusOr<WorkerSource> plain = ParseWorkerSource("--workers", "leader.svc:7000");
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->looked_up);
  EXPECT_EQ(plain->at.host, "leader.svc");
  const absl::StatusOr<WorkerSource> name = ParseWorkerSource("--workers", "dns:///leaders.svc:7000");
  ASSERT_TRUE(name.ok());
  EXPECT_TRUE(name->looked_up);
  EXPECT_EQ(name->at.host, "leaders.svc");
  EXPECT_EQ(name->at.port, 7000);
  for (const char* wrong : {"dns:///leaders.svc", "dns:///:7000", "dns://leaders.svc:7000", "a:0", "dns:///a:0"}) {
    const absl::StatusOr<WorkerSource> source = ParseWorkerSource("--workers", wrong);
    ASSERT_FALSE(source.ok()) << wrong;
    EXPECT_THAT(std::string(source.status().message()), HasSubstr("--workers"));
  }
}

TEST(ResolveTest, LoopbackHasAddressesAndAnImpossibleNameHasNone) {
  const auto found = ResolveWithSystem({"localhost", 7000});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(*found, Contains(testing::AnyOf("127.0.0.1:7000", "[::1]:7000")));
  const auto none = ResolveWithSystem({"no such name", 7000});
  ASSERT_FALSE(none.ok());
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("no such name"));
}

class DiscoveryTest : public ServiceTest {
 protected:
  void StartLookingUp() {
    options_.cluster.discovery = {.sources = {*ParseWorkerSource("", "dns:///groups.test:1")},
                                  .interval = absl::Milliseconds(5),
                                  .backoff_min = absl::Milliseconds(5),
                                  .backoff_max = absl::Milliseconds(10),
                                  .resolver = names_->resolver()};
    StartService();
  }
  bool SeriesOf(const std::string& address, bool there) {
    return ComesToSay("quicksilver_worker_up{model_name=\"demo\",group=\"" + address + "\"}", there);
  }
  bool AskedAFewTimes() {
    return Eventually([&] { return names_->asked() > 3; });
  }

  const std::shared_ptr<Names> names_ = std::make_shared<Names>();
};

TEST_F(DiscoveryTest, GroupsComeAndGoWithTheName) {
  StartGroup();
  StartSecondGroup();
  second_->SetReady(true);
  names_->Set({group_->address()});
  StartLookingUp();
  ASSERT_TRUE(ComesToSay(Up(group_->address(), true)));
  EXPECT_TRUE(SeriesOf(second_->address(), false));
  names_->Set({group_->address(), second_->address()});
  EXPECT_TRUE(ComesToSay(Up(second_->address(), true)));
}

TEST_F(DiscoveryTest, AGroupThatLeavesTheNameFinishesWhatItRunsAndIsNotDialledAgain) {
  StartGroup();
  StartSecondGroup();
  names_->Set({group_->address(), second_->address()});
  StartLookingUp();
  ASSERT_TRUE(BecomesReady(true));
  const auto sink = std::make_shared<RecordingSink>();
  const std::unique_ptr<Call> call = service_->Start(Ask(), sink);
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  names_->Set({second_->address()});
  ASSERT_TRUE(AskedAFewTimes());
  group_->Send(WholeAnswer(*submit, Ids("whole")));
  ASSERT_TRUE(sink->WaitUntilOver());
  EXPECT_EQ(sink->texts_[0], "whole");

  group_->BreakStream();
  EXPECT_TRUE(SeriesOf(group_->address(), false));
  // Back in the name, it is dialled: it had been left alone until then.
  names_->Set({group_->address(), second_->address()});
  EXPECT_TRUE(ComesToSay(Up(group_->address(), true)));
}

TEST_F(DiscoveryTest, ANameServerThatFailsTakesNoGroupAway) {
  StartGroup();
  names_->Set({group_->address()});
  StartLookingUp();
  ASSERT_TRUE(BecomesReady(true));
  testing::internal::CaptureStderr();
  names_->Fail("the name server is down");
  ASSERT_TRUE(AskedAFewTimes());
  names_->Set({});
  ASSERT_TRUE(AskedAFewTimes());
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, AllOf(HasSubstr("the name server is down"), HasSubstr("groups.test has no address")));
  // The stream breaks, and the group is found again without the name server.
  group_->BreakStream();
  group_->OnSubmit([&](const v1::Submit& submit) { group_->Send(WholeAnswer(submit, Ids("x"))); });
  ASSERT_TRUE(BecomesReady(false));
  ASSERT_TRUE(BecomesReady(true));
  EXPECT_EQ(ErrorOf(Ask()), "");
}

TEST_F(DiscoveryTest, ANameThatCannotBeLookedUpAtFirstIsLookedUpAgain) {
  StartGroup();
  StartLookingUp();
  ASSERT_TRUE(AskedAFewTimes());
  EXPECT_TRUE(service_->NotReady().has_value());
  names_->Set({group_->address()});
  EXPECT_TRUE(BecomesReady(true));
}

TEST_F(DiscoveryTest, AnotherCoordinatorAndARestartedOneFindTheGroupsAtOnce) {
  StartGroup();
  StartService();
  ASSERT_TRUE(BecomesReady(true));
  service_.reset();
  const absl::Time start = absl::Now();
  StartService();
  ASSERT_TRUE(BecomesReady(true));
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
}

TEST(DiscoveryOnlyTest, TellsOfFixedAddressesFirstAndOfChangesOnce) {
  const auto names = std::make_shared<Names>();
  names->Set({"10.0.0.2:1", "10.0.0.1:1", "10.0.0.2:1"});
  Mutex mu;
  CondVar changed;
  std::vector<std::set<std::string>> told;
  const auto discovery =
      Discovery::Start({.sources = {*ParseWorkerSource("", "[::1]:5"), *ParseWorkerSource("", "dns:///a:1")},
                        .interval = absl::Milliseconds(1),
                        .resolver = names->resolver()},
                       [&](const std::set<std::string>& members) {
                         MutexLock lock(mu);
                         told.push_back(members);
                         changed.NotifyAll();
                       });
  const absl::Time end = absl::Now() + absl::Seconds(10);
  while (names->asked() < 5 && absl::Now() < end) absl::SleepFor(absl::Milliseconds(1));
  MutexLock lock(mu);
  EXPECT_THAT(told, ElementsAre(ElementsAre("[::1]:5"), ElementsAre("10.0.0.1:1", "10.0.0.2:1", "[::1]:5")));
}

TEST(DiscoveryOnlyTest, ANameServerThatHangsHoldsUpNeitherOtherNamesNorTheEnd) {
  struct Gate {
    Mutex mu;
    CondVar changed;
    bool open GUARDED_BY(mu) = false;
    bool told GUARDED_BY(mu) = false;
    bool left GUARDED_BY(mu) = false;
  };
  const auto gate = std::make_shared<Gate>();
  const auto wait_for = [&](bool Gate::*flag) {
    MutexLock lock(gate->mu);
    const absl::Time end = absl::Now() + absl::Seconds(10);
    while (!((*gate).*flag) && absl::Now() < end) gate->changed.WaitFor(gate->mu, absl::Milliseconds(50));
    return (*gate).*flag;
  };
  auto discovery =
      Discovery::Start({.sources = {*ParseWorkerSource("", "dns:///dead:1"), *ParseWorkerSource("", "dns:///sound:1")},
                        .resolver = [gate](const HostPort& name) -> absl::StatusOr<std::vector<std::string>> {
                          if (name.host == "sound") return std::vector<std::string>{"10.0.0.1:1"};
                          MutexLock lock(gate->mu);
                          while (!gate->open) gate->changed.Wait(gate->mu);
                          gate->left = true;
                          gate->changed.NotifyAll();
                          return absl::UnavailableError("at last");
                        }},
                       [&](const std::set<std::string>& members) {
                         MutexLock lock(gate->mu);
                         gate->told = gate->told || members.contains("10.0.0.1:1");
                         gate->changed.NotifyAll();
                       });
  EXPECT_TRUE(wait_for(&Gate::told));
  discovery.reset();
  {
    MutexLock lock(gate->mu);
    EXPECT_FALSE(gate->left);
    gate->open = true;
    gate->changed.NotifyAll();
  }
  EXPECT_TRUE(wait_for(&Gate::left));
}

}  // namespace
}  // namespace quicksilver
