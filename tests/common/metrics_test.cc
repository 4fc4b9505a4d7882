#include "common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/counter.h>
#include <prometheus/registry.h>

#include <ctime>
#include <regex>

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

double Value(const std::string& text, const std::string& name) {
  std::smatch match;
  return std::regex_search(text, match, std::regex("(?:^|\n)" + name + " ([0-9.e+]+)")) ? std::stod(match[1]) : -1;
}

TEST(RenderMetricsTest, HoldsTheRegistryAndTheProcess) {
  prometheus::Registry registry;
  auto& family = prometheus::BuildCounter().Name("quicksilver_test_total").Help("A test.").Register(registry);
  family.Add({{"reason", "a"}}).Increment(3);
  const std::string text = RenderMetrics(registry);
  EXPECT_THAT(text, HasSubstr("quicksilver_test_total{reason=\"a\"} 3"));
  EXPECT_GT(Value(text, "process_resident_memory_bytes"), 1e6);
  EXPECT_GE(Value(text, "process_open_fds"), 3);
  EXPECT_NEAR(Value(text, "process_start_time_seconds"), static_cast<double>(std::time(nullptr)), 120);
}

}  // namespace
}  // namespace quicksilver
