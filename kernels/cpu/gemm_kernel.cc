#include "kernels/cpu/gemm_kernel.h"

#include <cstring>

#include "kernels/host_float.h"

namespace quicksilver {
namespace {

using dnnl::memory;

memory::data_type TileType(GemmArithmetic arithmetic) {
  if (arithmetic == GemmArithmetic::kInt8) return memory::data_type::u8;
  return arithmetic == GemmArithmetic::kF32 ? memory::data_type::f32 : memory::data_type::bf16;
}

memory::data_type WeightType(GemmArithmetic arithmetic) {
  return arithmetic == GemmArithmetic::kInt8 ? memory::data_type::s8 : TileType(arithmetic);
}

memory::data_type ProductType(GemmArithmetic arithmetic) {
  return arithmetic == GemmArithmetic::kInt8 ? memory::data_type::s32 : memory::data_type::f32;
}

/// Elements without a pattern. Numbers in [-1, 1); bytes of the whole range, with the largest magnitudes often beside
/// each other.
std::vector<char> ProbeElements(GemmArithmetic arithmetic, int64_t count) {
  const auto bytes = static_cast<size_t>(GemmElementBytes(arithmetic));
  std::vector<char> elements(static_cast<size_t>(count) * bytes);
  uint32_t state = 12345;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    state = state * 1664525u + 1013904223u;
    const float number = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    const uint16_t narrow = FloatToBf16(number);
    const char byte = static_cast<char>((state >> 30) == 0 ? 0x7F : state >> 22);
    const void* const element = arithmetic == GemmArithmetic::kF32    ? static_cast<const void*>(&number)
                                : arithmetic == GemmArithmetic::kBf16 ? static_cast<const void*>(&narrow)
                                                                      : &byte;
    std::memcpy(elements.data() + i * bytes, element, bytes);
  }
  return elements;
}

/// Whether products[c] is the sum of row[i] * weight[c, i], for all c.
bool IsExact(const std::vector<char>& row, const std::vector<char>& weight, const int32_t* products, int64_t cols) {
  const auto in = static_cast<int64_t>(row.size());
  for (int64_t c = 0; c < cols; ++c) {
    int32_t sum = 0;
    for (int64_t i = 0; i < in; ++i) {
      sum += static_cast<uint8_t>(row[static_cast<size_t>(i)]) *
             static_cast<int8_t>(weight[static_cast<size_t>(c * in + i)]);
    }
    if (sum != products[c]) return false;
  }
  return true;
}

}  // namespace

const dnnl::engine& GemmEngine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

GemmKernel::GemmKernel(GemmArithmetic arithmetic, int64_t tile_rows, int64_t in, int64_t cols, int32_t threads)
    : arithmetic_(arithmetic), tile_rows_(tile_rows), in_(in), cols_(cols) {
  const memory::desc tile({tile_rows, in}, TileType(arithmetic), memory::format_tag::ab);
  const memory::desc products({tile_rows, cols}, ProductType(arithmetic), memory::format_tag::ab);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // The library's own is not shared between threads.
  const dnnl::matmul::primitive_desc description(
      {tile, memory::desc({in, cols}, WeightType(arithmetic), memory::format_tag::any), products}, attributes,
      GemmEngine());
  primitive_ = dnnl::matmul(description);
  weights_ = description.weights_desc();
  for (int32_t thread = 0; thread < threads; ++thread) {
    lanes_.push_back({dnnl::stream(GemmEngine()), memory(tile, GemmEngine(), nullptr),
                      memory(products, GemmEngine(), nullptr), memory(description.scratchpad_desc(), GemmEngine())});
  }
}

void GemmKernel::Reorder(void* plain, memory weights) const {
  const memory::desc transposed({in_, cols_}, WeightType(arithmetic_), memory::dims{1, in_});
  memory from(transposed, GemmEngine(), plain);
  dnnl::stream stream(GemmEngine());
  dnnl::reorder(from, weights).execute(stream, from, weights);
  stream.wait();
}

bool GemmKernel::KeepsPromises() const {
  const std::vector<char> row = ProbeElements(arithmetic_, in_);
  std::vector<char> values = ProbeElements(arithmetic_, in_ * cols_), tile;
  for (int64_t n = 0; n < tile_rows_; ++n) tile.insert(tile.end(), row.begin(), row.end());
  const memory weights(weights_, GemmEngine());
  Reorder(values.data(), weights);
  std::vector<int32_t> products(static_cast<size_t>(tile_rows_ * cols_));  // Or floats: of the same size.
  if (Run(0, tile.data(), weights, products.data()) != dnnl_success) return false;
  for (int64_t n = 1; n < tile_rows_; ++n) {
    const int32_t* const other = products.data() + n * cols_;
    if (std::memcmp(products.data(), other, static_cast<size_t>(cols_) * sizeof(int32_t)) != 0) return false;
  }
  return arithmetic_ != GemmArithmetic::kInt8 || IsExact(row, values, products.data(), cols_);
}

dnnl_status_t GemmKernel::Run(int32_t thread, const void* tile, const memory& weights, void* products) const {
  const Lane& lane = lanes_[static_cast<size_t>(thread)];
  lane.tile.set_data_handle(const_cast<void*>(tile));
  lane.products.set_data_handle(products);
  const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, lane.tile.get()},
                                       {DNNL_ARG_WEIGHTS, weights.get()},
                                       {DNNL_ARG_DST, lane.products.get()},
                                       {DNNL_ARG_SCRATCHPAD, lane.scratchpad.get()}};
  return dnnl_primitive_execute(primitive_.get(), lane.stream.get(), 4, arguments);
}

}  // namespace quicksilver
