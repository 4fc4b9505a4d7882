#include "coordinator/tenants_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class TenantsFileTest : public testing::Test {
 protected:
  absl::StatusOr<TenantsOptions> Read(const std::string& text) {
    std::ofstream(path_) << text;
    return ReadTenantsFile(path_);
  }
  std::string ErrorOf(const std::string& text) {
    const absl::StatusOr<TenantsOptions> options = Read(text);
    return options.ok() ? "" : std::string(options.status().message());
  }
  const std::string path_ = testing::TempDir() + "/tenants.yaml";
};

TEST_F(TenantsFileTest, ReadsEveryLimitAndLeavesTheRestOpen) {
  const absl::StatusOr<TenantsOptions> options = Read(R"(
unknown:
  requests_per_minute: 60
tenants:
  acme:
    weight: 4.5
    concurrent_requests_max: 64
    queue_share_max: 0.5
    requests_per_minute: 600
    input_tokens_per_minute: 100000
    output_tokens_per_minute: 50000
    tokens_per_day: 10000000
    priority_max: interactive
  free:
)");
  ASSERT_TRUE(options.ok()) << options.status();
  ASSERT_EQ(options->tenants.size(), 2u);
  const TenantLimits& acme = options->tenants.at("acme");
  EXPECT_EQ(acme.weight, 4.5);
  EXPECT_EQ(acme.concurrent_requests_max, 64u);
  EXPECT_EQ(acme.queue_share_max, 0.5);
  EXPECT_EQ(acme.requests_per_minute, 600u);
  EXPECT_EQ(acme.input_tokens_per_minute, 100000u);
  EXPECT_EQ(acme.output_tokens_per_minute, 50000u);
  EXPECT_EQ(acme.tokens_per_day, 10000000u);
  EXPECT_EQ(options->tenants.at("free").weight, 1.0);
  EXPECT_EQ(options->tenants.at("free").requests_per_minute, std::nullopt);
  EXPECT_EQ(options->unknown.requests_per_minute, 60u);
  EXPECT_TRUE(Read("").ok());
}

TEST_F(TenantsFileTest, WithAFileOnlyThoseToWhomItIsGrantedGoBeforeTheDefaultClass) {
  const absl::StatusOr<TenantsOptions> options = Read(R"(
tenants:
  urgent:
    priority_max: interactive
  slow:
    priority_max: batch
  plain:
    weight: 2
)");
  ASSERT_TRUE(options.ok()) << options.status();
  const auto served = [&](const char* tenant) { return options->PriorityOf(tenant, Priority::kInteractive); };
  EXPECT_EQ(served("urgent"), Priority::kInteractive);
  EXPECT_EQ(served("slow"), Priority::kBatch);
  EXPECT_EQ(served("plain"), Priority::kDefault);
  EXPECT_EQ(served("nobody"), Priority::kDefault);
  EXPECT_EQ(options->PriorityOf("urgent", Priority::kBatch), Priority::kBatch) << "nobody is raised";
  EXPECT_EQ(Read("")->PriorityOf("nobody", Priority::kInteractive), Priority::kDefault);
  EXPECT_EQ(TenantsOptions{}.PriorityOf("nobody", Priority::kInteractive), Priority::kInteractive);
}

TEST_F(TenantsFileTest, ErrorsNameFileLineFieldAndValue) {
  EXPECT_THAT(ErrorOf("tenants:\n  acme:\n    weight: heavy\n"),
              AllOf(HasSubstr(path_ + ":3:"), HasSubstr("tenants.acme.weight"), HasSubstr("'heavy'")));
  EXPECT_THAT(ErrorOf("tenants:\n  acme:\n    weight: 0\n"), HasSubstr("'0' is not a number above 0"));
  EXPECT_THAT(ErrorOf("tenants:\n  acme:\n    weight: nan\n"), HasSubstr("'nan'"));
  EXPECT_THAT(ErrorOf("unknown:\n  queue_share_max: 1.5\n"),
              AllOf(HasSubstr(":2:"), HasSubstr("unknown.queue_share_max"), HasSubstr("'1.5'"), HasSubstr("up to 1")));
  EXPECT_THAT(ErrorOf("unknown:\n  requests_per_minute: -1\n"), HasSubstr("'-1' is not a whole number from 1"));
  EXPECT_THAT(ErrorOf("unknown:\n  requests_per_minute: [1]\n"), HasSubstr("unknown.requests_per_minute"));
  EXPECT_THAT(ErrorOf("unknown:\n  requests_per_hour: 1\n"), HasSubstr("unknown limit 'requests_per_hour'"));
  EXPECT_THAT(ErrorOf("unknown:\n  priority_max: first\n"),
              AllOf(HasSubstr(":2:"), HasSubstr("unknown.priority_max"), HasSubstr("'first' is none of")));
  EXPECT_THAT(ErrorOf("tenant:\n  a: {}\n"), AllOf(HasSubstr(":1:"), HasSubstr("unknown field 'tenant'")));
  EXPECT_THAT(ErrorOf("tenants:\n  a: {}\n  a: {}\n"), AllOf(HasSubstr(":3:"), HasSubstr("given twice")));
  EXPECT_THAT(ErrorOf("tenants: 5\n"), HasSubstr("expected a map"));
  EXPECT_THAT(ErrorOf("tenants:\n  " + std::string(200, 'x') + ": {}\n"), HasSubstr("a name of 200 bytes"));
  EXPECT_THAT(ErrorOf("tenants: {\n"), HasSubstr(path_ + ":"));
  EXPECT_THAT(std::string(ReadTenantsFile("/no/such.yaml").status().message()),
              AllOf(HasSubstr("/no/such.yaml"), HasSubstr("--tenants")));
}

}  // namespace
}  // namespace quicksilver
