#include "coordinator/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/metrics.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(CoordinatorMetricsTest, EverySeriesThatAlertsNeedIsThereFromTheStart) {
  Metrics metrics("demo", {"acme"});
  const std::unique_ptr<Metrics::Group> a = metrics.AddGroup("a:1"), b = metrics.AddGroup("b:2");
  const std::string page = RenderMetrics(metrics.registry());
  for (const char* line : {"quicksilver_num_requests_waiting{model_name=\"demo\"} 0\n",
                           "quicksilver_admission_rejections_total{model_name=\"demo\",reason=\"queue_full\"} 0\n",
                           "quicksilver_admission_rejections_total{model_name=\"demo\",reason=\"rate_limit\"} 0\n",
                           "quicksilver_requests_resumed_total{model_name=\"demo\",reason=\"lost\"} 0\n",
                           "quicksilver_generation_tokens_total{model_name=\"demo\",tenant=\"acme\"} 0\n",
                           "quicksilver_worker_up{model_name=\"demo\",group=\"b:2\"} 0\n",
                           "quicksilver_client_disconnects_total{model_name=\"demo\"} 0\n",
                           "quicksilver_time_to_first_token_seconds_bucket{model_name=\"demo\",le=\"+Inf\"} 0\n",
                           "quicksilver_requests_total{model_name=\"demo\",code=\"500\",finish_reason=\"\","
                           "route=\"/v1/chat/completions\"} 0\n"}) {
    EXPECT_THAT(page, HasSubstr(line));
  }
}

TEST(CoordinatorMetricsTest, EachFamilyIsDeclaredOnce) {
  Metrics metrics("demo", {"acme", "default"});
  const std::unique_ptr<Metrics::Group> a = metrics.AddGroup("a:1"), b = metrics.AddGroup("b:2");
  const std::string page = RenderMetrics(metrics.registry());
  std::set<std::string> families;
  size_t at = 0;
  while ((at = page.find("# TYPE ", at)) != std::string::npos) {
    const size_t end = page.find('\n', at);
    EXPECT_TRUE(families.insert(page.substr(at, end - at)).second) << page.substr(at, end - at);
    at = end;
  }
  EXPECT_GT(families.size(), 20u);
}

TEST(CoordinatorMetricsTest, TheSeriesOfAGroupEndWithIt) {
  Metrics metrics("demo");
  std::unique_ptr<Metrics::Group> group = metrics.AddGroup("a:1");
  group->up.Set(1);
  EXPECT_THAT(RenderMetrics(metrics.registry()), HasSubstr("group=\"a:1\"} 1\n"));
  group.reset();
  EXPECT_THAT(RenderMetrics(metrics.registry()), Not(HasSubstr("a:1")));
  group = metrics.AddGroup("a:1");
  EXPECT_THAT(RenderMetrics(metrics.registry()),
              HasSubstr("quicksilver_worker_up{model_name=\"demo\",group=\"a:1\"} 0"));
}

TEST(CoordinatorMetricsTest, TenantsBeyondTheBoundShareOneSeries) {
  std::vector<std::string> tenants;
  for (size_t i = 0; i <= Metrics::kTenantSeriesMax; ++i) tenants.push_back("t" + std::to_string(i));
  Metrics metrics("demo", tenants);
  metrics.tenant("t0").prompt_tokens->Increment(1);
  metrics.tenant(tenants.back()).prompt_tokens->Increment(2);
  metrics.tenant("made up").prompt_tokens->Increment(4);
  const std::string page = RenderMetrics(metrics.registry());
  EXPECT_THAT(page, HasSubstr("quicksilver_prompt_tokens_total{model_name=\"demo\",tenant=\"t0\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("quicksilver_prompt_tokens_total{model_name=\"demo\",tenant=\"other\"} 6\n"));
  EXPECT_THAT(page, Not(HasSubstr("made up")));
}

TEST(CoordinatorMetricsTest, ARouteThatAClientMadeUpMakesNoSeries) {
  Metrics metrics("demo");
  metrics.CountRequest("/v1/chat/completions", 200, "stop");
  metrics.CountRequest("/made/up", 404, "");
  const std::string page = RenderMetrics(metrics.registry());
  EXPECT_THAT(page, HasSubstr("code=\"200\",finish_reason=\"stop\",route=\"/v1/chat/completions\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("code=\"404\",finish_reason=\"\",route=\"unknown\"} 1\n"));
  EXPECT_THAT(page, Not(HasSubstr("/made/up")));
}

}  // namespace
}  // namespace quicksilver
