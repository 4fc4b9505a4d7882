#include "common/metrics.h"

#include <dirent.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <utility>
#include <vector>

#include "common/log.h"

namespace quicksilver {
namespace {

prometheus::MetricFamily Single(const char* name, const char* help, prometheus::MetricType type, double value) {
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return {name, help, type, {metric}};
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double OpenDescriptors() {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  int count = -3;  // ".", ".." and the descriptor of `folder` itself.
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

double MaxDescriptors() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<double>(limit.rlim_cur);
}

/// Unix time at which this process started: boot time plus field 22 of /proc/self/stat (proc(5)).
double StartTime() {
  std::ifstream stat("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(stat)), std::istreambuf_iterator<char>());
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // The name may hold spaces and brackets.
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double ticks = 0, boot = 0;
  fields >> ticks;
  std::ifstream system("/proc/stat");
  for (std::string key; system >> key;) {
    if (key == "btime") {
      system >> boot;
      break;
    }
  }
  return boot + ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

std::vector<prometheus::MetricFamily> ProcessMetrics() {
  using Type = prometheus::MetricType;
  return {Single("process_cpu_seconds_total", "User and system CPU time.", Type::Counter, CpuSeconds()),
          Single("process_resident_memory_bytes", "Resident memory.", Type::Gauge, ResidentBytes()),
          Single("process_open_fds", "Open file descriptors.", Type::Gauge, OpenDescriptors()),
          Single("process_max_fds", "Most file descriptors.", Type::Gauge, MaxDescriptors()),
          Single("process_start_time_seconds", "Start, Unix seconds.", Type::Gauge, StartTime()),
          Single("quicksilver_log_lines_dropped_total", "Log lines that nobody took.", Type::Counter,
                 static_cast<double>(LogLinesDropped()))};
}

}  // namespace

std::string RenderMetrics(const prometheus::Registry& registry) {
  std::vector<prometheus::MetricFamily> families = registry.Collect();
  for (prometheus::MetricFamily& family : ProcessMetrics()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace quicksilver
