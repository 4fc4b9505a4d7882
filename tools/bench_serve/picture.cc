#include "tools/bench_serve/picture.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace quicksilver {
namespace {

constexpr double kWidth = 880.0, kLeft = 70.0, kPlotWidth = 640.0, kPlotHeight = 150.0, kPanelHeight = 210.0,
                 kTop = 60.0;
// Points on a line: longer runs are shown in coarser steps.
constexpr size_t kPointsMax = 320;

struct Line {
  std::string name;
  std::string color;
  std::vector<double> values;  ///< One a point; NaN: nothing there.
};

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Text(double x, double y, const std::string& text, const char* more = "") {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, more, Escaped(text));
}

std::string Number(double value) { return absl::StrFormat(value >= 100 || value == 0 ? "%.0f" : "%.3g", value); }

/// The lowest of 1, 2, 5 × 10^k that is at least `value`.
double RoundUp(double value) {
  if (!(value > 0.0)) return 1.0;
  const double base = std::pow(10.0, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * base >= value) return factor * base;
  }
  return 10.0 * base;
}

std::string Panel(int row, const std::string& title, double seconds, const std::vector<Line>& lines) {
  const double top = kTop + kPanelHeight * row, bottom = top + kPlotHeight;
  double most = 0.0;
  for (const Line& line : lines) {
    for (const double value : line.values) most = std::isnan(value) ? most : std::max(most, value);
  }
  most = RoundUp(most);
  std::string out = Text(kLeft, top - 10, title, "font-weight=\"bold\"");
  for (int i = 0; i <= 4; ++i) {
    const double y = bottom - kPlotHeight * i / 4, x = kLeft + kPlotWidth * i / 4;
    absl::StrAppendFormat(&out, "<path d=\"M%.1f %.1fh%.1f\" stroke=\"#ddd\"/>\n", kLeft, y, kPlotWidth);
    out += Text(kLeft - 8, y + 4, Number(most * i / 4), "text-anchor=\"end\"");
    out += Text(x, bottom + 16, Number(seconds * i / 4) + " s", "text-anchor=\"middle\"");
  }
  for (size_t i = 0; i < lines.size(); ++i) {
    std::string path;
    bool pen_down = false;
    const size_t count = lines[i].values.size();
    for (size_t p = 0; p < count; ++p) {
      const double value = lines[i].values[p];
      if (!std::isnan(value)) {
        const double x = kLeft + kPlotWidth * (static_cast<double>(p) + 0.5) / static_cast<double>(count);
        absl::StrAppendFormat(&path, "%s%.1f %.1f", pen_down ? "L" : "M", x, bottom - kPlotHeight * value / most);
        if (!pen_down) path += "h0.1";  // A lone point is seen, too.
      }
      pen_down = !std::isnan(value);
    }
    absl::StrAppendFormat(&out,
                          "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\" stroke-linecap=\"round\"/>\n",
                          path.empty() ? "M0 0" : path, lines[i].color);
    out += Text(kLeft + kPlotWidth + 15, top + 15 + 20 * static_cast<double>(i), lines[i].name,
                absl::StrCat("fill=\"", lines[i].color, "\"").c_str());
  }
  return out;
}

using Value = std::function<double(const std::vector<const SecondOfRun*>& seconds)>;

std::vector<double> Points(const BenchMetrics& metrics, const Value& value) {
  const size_t step = (metrics.seconds.size() + kPointsMax - 1) / kPointsMax;
  std::vector<double> points;
  for (size_t begin = 0; begin < metrics.seconds.size(); begin += step) {
    std::vector<const SecondOfRun*> seconds;
    for (size_t i = begin; i < std::min(begin + step, metrics.seconds.size()); ++i)
      seconds.push_back(&metrics.seconds[i]);
    points.push_back(value(seconds));
  }
  return points;
}

template <typename Member>
Line PerSecond(const BenchMetrics& metrics, const char* name, const char* color, Member member) {
  return {name, color, Points(metrics, [&](const std::vector<const SecondOfRun*>& seconds) {
            double sum = 0.0;
            for (const SecondOfRun* second : seconds) sum += static_cast<double>(second->*member);
            return sum / static_cast<double>(seconds.size());
          })};
}

Line Latency(const BenchMetrics& metrics, const char* name, const char* color, double percentile,
             std::vector<double> SecondOfRun::*member) {
  return {name, color, Points(metrics, [&](const std::vector<const SecondOfRun*>& seconds) {
            std::vector<double> all;
            for (const SecondOfRun* second : seconds)
              all.insert(all.end(), (second->*member).begin(), (second->*member).end());
            std::sort(all.begin(), all.end());
            return all.empty() ? std::nan("") : Percentile(all, percentile);
          })};
}

}  // namespace

std::string DrawPicture(const std::string& title, const BenchMetrics& metrics) {
  const auto seconds = static_cast<double>(metrics.seconds.size());
  std::string out = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      kWidth, kTop + 4 * kPanelHeight);
  out += Text(kLeft, 24, title, "font-size=\"15\" font-weight=\"bold\"");
  out += Panel(0, "Output tokens per second", seconds,
               {PerSecond(metrics, "tokens/s", "#1668b0", &SecondOfRun::output_tokens)});
  out += Panel(1, "Requests that ended per second", seconds,
               {PerSecond(metrics, "completed", "#2a7d2a", &SecondOfRun::completed),
                PerSecond(metrics, "rejected", "#c77700", &SecondOfRun::rejected),
                PerSecond(metrics, "failed", "#b3261e", &SecondOfRun::failed)});
  out += Panel(2, "Time to first token (ms), by the second of sending", seconds,
               {Latency(metrics, "P50 TTFT", "#1668b0", 50.0, &SecondOfRun::ttfts_ms),
                Latency(metrics, "P99 TTFT", "#b3261e", 99.0, &SecondOfRun::ttfts_ms)});
  out += Panel(3, "End-to-end latency (ms), by the second of sending", seconds,
               {Latency(metrics, "P50 E2EL", "#1668b0", 50.0, &SecondOfRun::e2els_ms),
                Latency(metrics, "P99 E2EL", "#b3261e", 99.0, &SecondOfRun::e2els_ms)});
  return out + "</svg>\n";
}

}  // namespace quicksilver
