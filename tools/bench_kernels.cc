// Measures the CPU operations: our matrix product against oneDNN's called alone on the same shapes, turn by turn in one
// run, and every operation of a denoising step as a part of the step. Only ratios travel to other machines.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <dnnl.hpp>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/check.h"
#include "common/clock.h"
#include "common/exit_codes.h"
#include "common/options.h"
#include "kernels/cpu/cpu_ops.h"

extern "C" void omp_set_num_threads(int threads);

namespace quicksilver {
namespace {

struct Options {
  std::vector<int32_t> threads = {1, 2};
  int32_t tile_rows = CpuOpsOptions{}.tile_rows;
  double quantile = 0.5;
  bool step_only = false;
  bool gemm_only = false;
};

double MicrosecondsOf(const std::function<void()>& work) {
  const absl::Duration start = MonotonicNow();
  work();
  return absl::ToDoubleMicroseconds(MonotonicNow() - start);
}

double Quantile(std::vector<double> values, double quantile) {
  const auto i = static_cast<std::ptrdiff_t>(quantile * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + i, values.end());
  return values[i];
}

const char* NameOf(DType dtype) { return dtype == DType::kF32 ? "f32" : "bf16"; }

DeviceBuffer Buffer(Ops& ops, int64_t elements, DType dtype) {
  absl::StatusOr<DeviceBuffer> buffer = ops.Allocate(static_cast<size_t>(elements) * ElementBytes(dtype));
  CHECK(buffer.ok());
  return std::move(buffer).value();
}

/// Small numbers that are not zero, since some processors multiply zeros faster.
std::unique_ptr<GemmWeight> Weight(Ops& ops, int64_t out, int64_t in) {
  std::vector<float> values(static_cast<size_t>(out * in));
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.001f * static_cast<float>(i % 97) - 0.048f;
  auto weight = ops.PrepareWeight({values.data(), out, in, in, DType::kF32}, WeightRole::kLayer);
  CHECK(weight.ok());
  return std::move(weight).value();
}

/// oneDNN's matrix product for exactly these rows, weights in the layout it likes best.
class LibraryGemm {
 public:
  LibraryGemm(DType dtype, int64_t rows, int64_t in, int64_t out, int32_t threads)
      : threads_(threads), engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    using dnnl::memory;
    omp_set_num_threads(threads);
    const auto type = dtype == DType::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
    const memory::desc x({rows, in}, type, memory::format_tag::ab), y({rows, out}, type, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc description({x, memory::desc({in, out}, type, memory::format_tag::any), y},
                                                   engine_);
    primitive_ = dnnl::matmul(description);
    arguments_ = {{DNNL_ARG_SRC, memory(x, engine_)},
                  {DNNL_ARG_WEIGHTS, memory(description.weights_desc(), engine_)},
                  {DNNL_ARG_DST, memory(y, engine_)}};
    for (auto& [argument, values] : arguments_) {
      std::fill_n(static_cast<uint16_t*>(values.get_data_handle()), values.get_desc().get_size() / 2, uint16_t{0x3C10});
    }
  }

  void Run() {
    omp_set_num_threads(threads_);
    primitive_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  int32_t threads_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul primitive_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

struct GemmShape {
  const char* name;
  int64_t in;
  int64_t out;
};

constexpr GemmShape kGemmShapes[] = {
    {"demo qkv", 192, 320}, {"demo gate+up", 192, 1024}, {"demo down", 512, 192},      {"256 gate+up", 256, 1536},
    {"256 down", 768, 256}, {"300M qkv", 1024, 2048},    {"300M gate+up", 1024, 8192}, {"300M down", 4096, 1024},
    {"1B qkv", 2048, 2560}, {"1B gate+up", 2048, 11264}, {"1B down", 5632, 2048},
};

/// Turn by turn, some calls in a row. The pause lets OpenMP's threads go to sleep, as they spin after their work and
/// would take a core from ours.
std::pair<double, double> TurnByTurn(const Options& options, int32_t threads, const std::function<void()>& ours,
                                     const std::function<void()>& library) {
  std::vector<double> our_times, library_times;
  double spent = 0.0;
  for (int turn = 0; turn < 40 && (turn < 5 || spent < 1.5e5); ++turn) {
    for (const bool our_turn : {true, false}) {
      if (threads > 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const std::function<void()>& work = our_turn ? ours : library;
      work();
      double turn_time = 0.0;
      for (int i = 0; i < 50 && turn_time < 3000.0; ++i) {
        const double time = MicrosecondsOf(work);
        (our_turn ? our_times : library_times).push_back(time);
        turn_time += time;
      }
      spent += turn_time;
    }
  }
  return {Quantile(our_times, options.quantile), Quantile(library_times, options.quantile)};
}

void MeasureGemms(const Options& options, DType dtype, int32_t threads) {
  const std::unique_ptr<Ops> ops = MakeCpuOps(dtype, {.threads = threads, .tile_rows = options.tile_rows});
  std::printf("\ngemm, %s, threads %d, %s: microseconds, ours / oneDNN alone = ratio\n", NameOf(dtype), threads,
              ops->name().c_str());
  std::printf("%-14s %12s", "weight", "in x out");
  for (const int rows : {8, 32, 128}) std::printf("   %6d rows           ", rows);
  std::printf("\n");
  for (const auto& [name, in, out] : kGemmShapes) {
    const std::unique_ptr<GemmWeight> weight = Weight(*ops, out, in);
    std::printf("%-14s %5lld x %5lld", name, static_cast<long long>(in), static_cast<long long>(out));
    for (const int64_t rows : {8, 32, 128}) {
      const DeviceBuffer x = Buffer(*ops, rows * in, dtype), y = Buffer(*ops, rows * out, dtype);
      const std::vector<uint16_t> ones(rows * in * ElementBytes(dtype) / 2, uint16_t{0x3C10});
      ops->Upload(ones.data(), x.data(), ones.size() * 2);
      LibraryGemm library(dtype, rows, in, out, threads);
      const auto ours = [&] { ops->Gemm({x.data(), rows, in, in, dtype}, *weight, {y.data(), rows, out, out, dtype}); };
      const auto [our_time, library_time] = TurnByTurn(options, threads, ours, [&] { library.Run(); });
      std::printf(" %8.1f / %8.1f = %4.2f", our_time, library_time, our_time / library_time);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

struct ModelShape {
  const char* name;
  int32_t layers, hidden, heads, kv_heads, head_size, mlp, vocabulary;
};

constexpr ModelShape kModels[] = {
    {"demo", 4, 192, 6, 2, 32, 512, 1024},
    {"256", 8, 256, 8, 2, 32, 768, 4096},
    {"300M, 4 layers", 4, 1024, 16, 8, 64, 4096, 32000},
    {"1B, 2 layers", 2, 2048, 32, 4, 64, 5632, 32000},
};

/// The operations of a transformer step, each timed; greedy or sampling candidates for every row.
class Step {
 public:
  Step(const ModelShape& shape, DType dtype, int32_t threads, int32_t tile_rows, int32_t rows, int32_t context)
      : shape_(shape),
        dtype_(dtype),
        rows_(rows),
        ops_(MakeCpuOps(dtype, {.threads = threads, .tile_rows = tile_rows})) {
    const int64_t q = int64_t{shape.heads} * shape.head_size, kv = int64_t{shape.kv_heads} * shape.head_size;
    for (int32_t layer = 0; layer < shape.layers; ++layer) {
      layers_.push_back({Weight(*ops_, q + 2 * kv, shape.hidden), Weight(*ops_, shape.hidden, q),
                         Weight(*ops_, 2 * shape.mlp, shape.hidden), Weight(*ops_, shape.hidden, shape.mlp),
                         Space(context + rows, kv), Space(context + rows, kv)});
    }
    head_ = Weight(*ops_, shape.vocabulary, shape.hidden);
    table_ = Space(shape.vocabulary, shape.hidden);
    hidden_ = Space(rows, shape.hidden);
    normed_ = Space(rows, shape.hidden);
    partial_ = Space(rows, shape.hidden);
    qkv_ = Space(rows, q + 2 * kv);
    mixed_ = Space(rows, q);
    gate_up_ = Space(rows, 2 * shape.mlp);
    activated_ = Space(rows, shape.mlp);
    logits_ = Space(rows, shape.vocabulary);
    gains_.assign(static_cast<size_t>(std::max(shape.hidden, shape.head_size)), 1.0f);
    for (int32_t n = 0; n < rows; ++n) {
      ids_.push_back(n % shape.vocabulary);
      positions_.push_back(context + n);
    }
    pages_ = {0};
    segment_ = {.rows = rows, .first_position = context, .keys = context + rows, .block_length = kBidirectional};
    layout_ = {.rows = rows,
               .positions = positions_.data(),
               .slots = positions_.data(),
               .segments = &segment_,
               .segments_count = 1,
               .page_table = pages_.data(),
               .page_size = context + rows,
               .rows_max = rows,
               .keys_max = context + rows};
    candidates_.resize(static_cast<size_t>(rows));
  }

  /// Adds the microseconds of every operation to `times`.
  void Run(float temperature, std::map<std::string, double>* times) {
    const auto timed = [&](const char* name, const auto& work) { (*times)[name] += MicrosecondsOf(work); };
    const HeadTransform transform = {gains_.data(), gains_.data(), 1e-6f, {}};
    const Matrix q = ColumnBand(qkv_.view, 0, mixed_.view.cols);
    timed("embed", [&] { ops_->Embed(ids_.data(), table_.view, 0, hidden_.view); });
    timed("norm", [&] { ops_->RmsNorm(hidden_.view, gains_.data(), 1e-6f, normed_.view); });
    for (const Layer& layer : layers_) {
      timed("gemm", [&] { ops_->Gemm(normed_.view, *layer.qkv, qkv_.view); });
      const KvLayer cache = {layer.keys.view, layer.values.view};
      timed("rotate",
            [&] { ops_->RotateAndCache(layout_, transform, shape_.heads, shape_.kv_heads, cache, qkv_.view); });
      timed("attention", [&] { ops_->Attention(layout_, q, shape_.heads, shape_.kv_heads, {}, cache, mixed_.view); });
      timed("gemm", [&] { ops_->Gemm(mixed_.view, *layer.out, partial_.view); });
      timed("norm", [&] { ops_->AddRmsNorm(partial_.view, gains_.data(), 1e-6f, hidden_.view, normed_.view); });
      timed("gemm", [&] { ops_->Gemm(normed_.view, *layer.gate_up, gate_up_.view); });
      timed("silu", [&] { ops_->GatedMul(Activation::kSilu, gate_up_.view, activated_.view); });
      timed("gemm", [&] { ops_->Gemm(activated_.view, *layer.down, partial_.view); });
      timed("norm", [&] { ops_->AddRmsNorm(partial_.view, gains_.data(), 1e-6f, hidden_.view, normed_.view); });
    }
    requests_.clear();
    for (int32_t n = 0; n < rows_; ++n) {
      const DrawPlace place = {.seed = 1, .position = static_cast<uint32_t>(n), .step = step_};
      requests_.push_back({.row = n, .temperature = temperature, .place = place});
    }
    ++step_;
    timed("candidates", [&] {
      ops_->Candidates(normed_.view, *head_, {.vocabulary = shape_.vocabulary},
                       {.requests = requests_.data(), .count = rows_}, 0, candidates_.data(), nullptr);
    });
    // Not part of the step: what the LM head costs as a plain product.
    timed("(head gemm)", [&] { ops_->Gemm(normed_.view, *head_, logits_.view); });
    CHECK(ops_->Synchronize().ok());
  }

 private:
  struct Held {
    DeviceBuffer buffer;
    Matrix view;
  };
  struct Layer {
    std::unique_ptr<GemmWeight> qkv, out, gate_up, down;
    Held keys, values;
  };

  Held Space(int64_t rows, int64_t cols) {
    Held held{Buffer(*ops_, rows * cols, dtype_), {}};
    held.view = {held.buffer.data(), rows, cols, cols, dtype_};
    std::vector<uint16_t> values(static_cast<size_t>(rows * cols) * ElementBytes(dtype_) / 2);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(0x3C00 + i % 61);
    ops_->Upload(values.data(), held.buffer.data(), values.size() * 2);
    return held;
  }

  ModelShape shape_;
  DType dtype_;
  int32_t rows_;
  std::unique_ptr<Ops> ops_;
  std::vector<Layer> layers_;
  std::unique_ptr<GemmWeight> head_;
  Held table_, hidden_, normed_, partial_, qkv_, mixed_, gate_up_, activated_, logits_;
  std::vector<float> gains_;
  std::vector<int32_t> ids_, positions_, pages_;
  AttentionSegment segment_;
  StepLayout layout_;
  std::vector<CandidateRequest> requests_;
  std::vector<Candidate> candidates_;
  uint32_t step_ = 0;
};

void MeasureStep(const Options& options, const ModelShape& shape, DType dtype, int32_t threads, float temperature) {
  constexpr int32_t kRows = 8, kContext = 120;
  Step step(shape, dtype, threads, options.tile_rows, kRows, kContext);
  std::map<std::string, std::vector<double>> all;
  double spent = 0.0;
  for (int i = 0; i < 300 && (i < 10 || spent < 5e5); ++i) {
    std::map<std::string, double> times;
    spent += MicrosecondsOf([&] { step.Run(temperature, &times); });
    double total = 0.0;
    for (const auto& [name, time] : times) {
      all[name].push_back(time);
      if (name != "(head gemm)") total += time;
    }
    all["= step"].push_back(total);
    all["= products"].push_back(times["gemm"] + times["(head gemm)"]);
  }
  const double whole = Quantile(all["= step"], options.quantile);
  const double products = Quantile(all["= products"], options.quantile);
  std::printf("%-15s %-4s threads %d T %.1f: %8.0f us, products alone %8.0f, ratio %4.2f |", shape.name, NameOf(dtype),
              threads, temperature, whole, products, whole / products);
  for (const auto& [name, times] : all) {
    if (name[0] != '=') std::printf(" %s %.1f%%", name.c_str(), 100.0 * Quantile(times, options.quantile) / whole);
  }
  std::printf("\n");
  std::fflush(stdout);
}

int Run(int argc, char** argv) {
  Options options;
  CLI::App app("Measures the CPU operations.", "quicksilver_bench_kernels");
  app.add_option("--threads", options.threads, "Thread counts to measure")->check(CLI::Range(1, 256));
  app.add_option("--tile-rows", options.tile_rows)->check(CLI::Range(8, 64))->capture_default_str();
  app.add_option("--quantile", options.quantile, "Which of the times to print; below 0.5 on a machine with other work")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_flag("--gemm-only", options.gemm_only, "Leave out the steps");
  app.add_flag("--step-only", options.step_only, "Leave out the matrix products");
  if (const std::optional<int> exit = ParseOptions(app, argc, argv); exit.has_value()) return *exit;
  for (const int32_t threads : options.threads) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      if (!options.step_only) MeasureGemms(options, dtype, threads);
    }
  }
  if (options.gemm_only) return kExitOk;
  std::printf("\nstep of 8 rows behind 120 positions: the step, its products alone, and every operation's part\n");
  for (const int32_t threads : options.threads) {
    for (const DType dtype : {DType::kF32, DType::kBf16}) {
      for (const ModelShape& shape : kModels) {
        for (const float temperature : {0.0f, 0.8f}) MeasureStep(options, shape, dtype, threads, temperature);
      }
    }
  }
  return kExitOk;
}

}  // namespace
}  // namespace quicksilver

int main(int argc, char** argv) { return quicksilver::Run(argc, argv); }
