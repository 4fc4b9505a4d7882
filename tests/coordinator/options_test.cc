#include "coordinator/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "common/exit_codes.h"

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Outcome {
  std::optional<int> exit;
  CoordinatorOptions options;
  std::string out, errors;
};

Outcome Read(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "quicksilver-coordinator");
  Outcome run;
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  run.exit = ReadOptions(static_cast<int>(arguments.size()), arguments.data(), run.options);
  run.out = testing::internal::GetCapturedStdout();
  run.errors = testing::internal::GetCapturedStderr();
  return run;
}

TEST(CoordinatorOptionsTest, ReadsAListOfWorkers) {
  const Outcome run = Read({"--model=models/demo", "--workers=a:1,b:2", "--choices-max=4"});
  EXPECT_EQ(run.exit, std::nullopt) << run.errors;
  EXPECT_THAT(run.options.workers, ElementsAre("a:1", "b:2"));
  EXPECT_EQ(run.options.choices_max, 4u);
}

TEST(CoordinatorOptionsTest, WrongValuesEndWithOneLineThatNamesThem) {
  const Outcome port = Read({"--model=m", "--workers=a:1", "--http-listen=127.0.0.1:99999"});
  EXPECT_EQ(port.exit, kExitUsage);
  EXPECT_THAT(port.errors, AllOf(HasSubstr("--http-listen"), HasSubstr("127.0.0.1:99999")));
  EXPECT_EQ(std::count(port.errors.begin(), port.errors.end(), '\n'), 1);
  EXPECT_EQ(Read({"--model=m", "--workers=a"}).exit, kExitUsage);
  EXPECT_EQ(Read({"--model=m"}).exit, kExitUsage);
  EXPECT_EQ(Read({"--model=m", "--workers=a:1", "--choices-max=129"}).exit, kExitUsage);
  EXPECT_EQ(Read({"--model=m", "--workers=a:1", "--unheard-of=1"}).exit, kExitUsage);
}

TEST(CoordinatorOptionsTest, NamesOfGroupsAreToldFromAddresses) {
  const Outcome run = Read({"--model=m", "--workers=dns:///leaders.svc:7000,a:1", "--discovery-seconds=2"});
  ASSERT_EQ(run.exit, std::nullopt) << run.errors;
  ASSERT_EQ(run.options.worker_sources.size(), 2u);
  EXPECT_TRUE(run.options.worker_sources[0].looked_up);
  EXPECT_EQ(run.options.worker_sources[0].at.host, "leaders.svc");
  EXPECT_FALSE(run.options.worker_sources[1].looked_up);
  EXPECT_EQ(run.options.discovery_seconds, 2);
  EXPECT_THAT(Read({"--model=m", "--workers=dns:///leaders.svc"}).errors, HasSubstr("leaders.svc"));
}

TEST(CoordinatorOptionsTest, TheFileOfTenantsIsCheckedAtOnce) {
  const std::string path = testing::TempDir() + "/options_tenants.yaml";
  std::ofstream(path) << "tenants:\n  acme:\n    weight: 2\n";
  const std::string flag = "--tenants=" + path;
  const Outcome run = Read({"--model=m", "--workers=a:1", flag.c_str(), "--tenant-header=X-Tenant"});
  ASSERT_EQ(run.exit, std::nullopt) << run.errors;
  EXPECT_EQ(run.options.tenants.tenants.at("acme").weight, 2);
  EXPECT_EQ(run.options.tenant_header, "x-tenant");
  std::ofstream(path) << "tenants:\n  acme:\n    weight: none\n";
  const Outcome wrong = Read({"--model=m", "--workers=a:1", flag.c_str()});
  EXPECT_EQ(wrong.exit, kExitUsage);
  EXPECT_THAT(wrong.errors, AllOf(HasSubstr(path + ":3"), HasSubstr("'none'")));
  EXPECT_EQ(Read({"--model=m", "--workers=a:1", "--tenant-header=x tenant"}).exit, kExitUsage);
}

TEST(CoordinatorOptionsTest, HelpNamesEveryListenerAndItsDefault) {
  const Outcome run = Read({"--help"});
  EXPECT_EQ(run.exit, kExitOk);
  EXPECT_THAT(run.out, AllOf(HasSubstr("127.0.0.1:8080"), HasSubstr("127.0.0.1:8081"), HasSubstr("127.0.0.1:9091"),
                             HasSubstr("--lame-duck-seconds"), HasSubstr("QUICKSILVER_FOO_BAR")));
}

TEST(CoordinatorOptionsTest, AddressesMayBeNamesAndIpv6) {
  EXPECT_EQ(ParseHostPort("--f", "[::1]:80")->host, "::1");
  EXPECT_EQ(ParseHostPort("--f", "leader.svc:7000")->port, 7000);
  EXPECT_FALSE(ParseHostPort("--f", "::1:80").ok());
  EXPECT_FALSE(ParseHostPort("--f", ":80").ok());
  EXPECT_FALSE(ParseHostPort("--f", "h:").ok());
  EXPECT_FALSE(ParseHostPort("--f", "h:-1").ok());
  EXPECT_TRUE(IsLoopback("127.0.0.2"));
  EXPECT_FALSE(IsLoopback("0.0.0.0"));
}

}  // namespace
}  // namespace quicksilver
