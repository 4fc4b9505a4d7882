#include "tests/support/tiny_gemma.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "kernels/host_float.h"

namespace quicksilver {
namespace {

constexpr double kEpsilon = 1e-6;

std::vector<double> Normed(const std::vector<double>& x) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  std::vector<double> out(x);
  for (double& v : out) v /= std::sqrt(squares / static_cast<double>(x.size()) + kEpsilon);
  return out;
}

double Gelu(double x) { return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))); }

std::string LayerName(int64_t layer, const char* name) { return absl::StrCat("layers.", layer, ".", name); }

std::vector<double> Softmax(const std::vector<double>& z, double temperature) {
  const double largest = *std::max_element(z.begin(), z.end());
  std::vector<double> p;
  double sum = 0.0;
  for (const double v : z) sum += p.emplace_back(std::exp((v - largest) / temperature));
  for (double& v : p) v /= sum;
  return p;
}

}  // namespace

TinyGemma::TinyGemma(uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float deviation, float mean = 0.0f) {
    int64_t elements = 1;
    for (const int64_t dimension : shape) elements *= dimension;
    Tensor& tensor = tensors[name];
    tensor.shape = std::move(shape);
    for (int64_t i = 0; i < elements; ++i) tensor.values.push_back(mean + deviation * normal(generator));
  };
  const auto matrix = [&](const std::string& name, int64_t out, int64_t in) {
    add(name, {out, in}, 1.0f / std::sqrt(static_cast<float>(in)));
  };
  const auto gain = [&](const std::string& name, int64_t size) { add(name, {size}, 0.2f, 1.0f); };
  add("embed_tokens.weight", {vocabulary, hidden}, 0.5f);
  gain("norm.weight", hidden);
  gain("self_conditioning.pre_norm.weight", hidden);
  matrix("self_conditioning.gate_proj.weight", mlp, hidden);
  matrix("self_conditioning.up_proj.weight", mlp, hidden);
  add("self_conditioning.down_proj.weight", {hidden, mlp}, 0.3f);
  for (size_t i = 0; i < full.size(); ++i) {
    const auto of = [&](const char* name) { return LayerName(static_cast<int64_t>(i), name); };
    const int64_t hd = full[i] != 0 ? full_head_size : head_size, kv = full[i] != 0 ? full_kv_heads : kv_heads;
    matrix(of("self_attn.q_proj.weight"), heads * hd, hidden);
    matrix(of("self_attn.k_proj.weight"), kv * hd, hidden);
    if (full[i] == 0) matrix(of("self_attn.v_proj.weight"), kv * hd, hidden);
    matrix(of("self_attn.o_proj.weight"), hidden, heads * hd);
    add(of("self_attn.q_norm.weight"), {hd}, 0.1f, 0.6f);
    add(of("self_attn.k_norm.weight"), {hd}, 0.1f, 0.6f);
    matrix(of("mlp.gate_proj.weight"), mlp, hidden);
    matrix(of("mlp.up_proj.weight"), mlp, hidden);
    matrix(of("mlp.down_proj.weight"), hidden, mlp);
    add(of("router.proj.weight"), {experts, hidden}, 1.0f);
    gain(of("router.scale"), hidden);
    gain(of("router.per_expert_scale"), experts);
    matrix(of("experts.gate_up_proj"), experts * 2 * expert_mlp, hidden);
    matrix(of("experts.down_proj"), experts * hidden, expert_mlp);
    tensors[of("experts.gate_up_proj")].shape = {experts, 2 * expert_mlp, hidden};
    tensors[of("experts.down_proj")].shape = {experts, hidden, expert_mlp};
    for (const char* name : {"input_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm_1",
                             "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"}) {
      gain(absl::StrCat(of(name), ".weight"), hidden);
    }
    // What a layer adds stays below what it finds, so that a canvas settles and rounding does not grow from step to
    // step.
    for (const char* name : {"post_attention_layernorm", "post_feedforward_layernorm"}) {
      add(absl::StrCat(of(name), ".weight"), {hidden}, 0.1f, 0.4f);
    }
    add(of("layer_scalar"), {1}, 0.05f, 0.8f);
  }
}

void TinyGemma::Write(const std::string& directory, const std::string& prefix,
                      const std::vector<std::string>& more) const {
  nlohmann::json types = nlohmann::json::array();
  for (const uint8_t is_full : full) types.push_back(is_full != 0 ? "full_attention" : "sliding_attention");
  const nlohmann::json text = {
      {"model_type", "diffusion_gemma_text"},
      {"vocab_size", vocabulary},
      {"hidden_size", hidden},
      {"num_hidden_layers", full.size()},
      {"num_attention_heads", heads},
      {"layer_types", types},
      {"sliding_window", window},
      {"num_key_value_heads", kv_heads},
      {"head_dim", head_size},
      {"num_global_key_value_heads", full_kv_heads},
      {"global_head_dim", full_head_size},
      {"intermediate_size", mlp},
      {"num_experts", experts},
      {"top_k_experts", chosen},
      {"moe_intermediate_size", expert_mlp},
      {"hidden_activation", "gelu_pytorch_tanh"},
      {"rms_norm_eps", kEpsilon},
      {"final_logit_softcapping", soft_cap},
      {"max_position_embeddings", 256},
      {"tie_word_embeddings", true},
      {"rope_parameters",
       {{"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 1e4}}},
        {"full_attention",
         {{"rope_type", "proportional"},
          {"rope_theta", 1e6},
          {"partial_rotary_factor", static_cast<double>(rotary_size) / static_cast<double>(full_head_size)}}}}}};
  const nlohmann::json config = {{"architectures", {"DiffusionGemmaForBlockDiffusion"}},
                                 {"model_type", "diffusion_gemma"},
                                 {"canvas_length", canvas},
                                 {"eos_token_id", {1}},
                                 {"text_config", text}};
  std::ofstream(directory + "/config.json") << config.dump();
  nlohmann::ordered_json header;
  std::string data;
  const auto append = [&](const std::string& name, const Tensor& tensor) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * sizeof(float));
    header[name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  };
  for (const auto& [name, tensor] : tensors) {
    const bool conditioning = absl::StartsWith(name, "self_conditioning.");
    append((conditioning ? "model.decoder." : prefix) + name, tensor);
  }
  for (const std::string& name : more) append(name, {{2}, {1.0f, 2.0f}});
  std::string text_header = header.dump();
  text_header.append((8 - text_header.size() % 8) % 8, ' ');
  const uint64_t size = text_header.size();
  std::ofstream out(directory + "/model.safetensors", std::ios::binary);
  out.write(reinterpret_cast<const char*>(&size), sizeof size);
  out << text_header << data;
  CHECK(out.good());
}

Doubles GemmaReference::Product(const Doubles& x, const float* weight, int64_t out) const {
  Doubles y;
  for (const std::vector<double>& row : x) {
    std::vector<double>& sums = y.emplace_back(static_cast<size_t>(out));
    for (size_t o = 0; o < sums.size(); ++o) {
      for (size_t i = 0; i < row.size(); ++i) sums[o] += row[i] * static_cast<double>(weight[o * row.size() + i]);
    }
  }
  return y;
}

Doubles GemmaReference::Norm(const Doubles& x, const std::string& gain) const {
  Doubles y;
  for (const std::vector<double>& row : x) {
    std::vector<double>& out = y.emplace_back(Normed(row));
    for (size_t h = 0; h < out.size(); ++h) out[h] *= static_cast<double>(model_.Of(gain)[h]);
  }
  return y;
}

Doubles GemmaReference::Mlp(const std::string& prefix, const Doubles& x) const {
  Doubles gate = Product(x, model_.Of(prefix + "gate_proj.weight").data(), model_.mlp);
  const Doubles up = Product(x, model_.Of(prefix + "up_proj.weight").data(), model_.mlp);
  for (size_t n = 0; n < gate.size(); ++n) {
    for (size_t i = 0; i < gate[n].size(); ++i) gate[n][i] = Gelu(gate[n][i]) * up[n][i];
  }
  return Product(gate, model_.Of(prefix + "down_proj.weight").data(), model_.hidden);
}

Doubles GemmaReference::Embed(const std::vector<TokenId>& ids) const {
  const std::vector<float>& table = model_.Of("embed_tokens.weight");
  const double scale = RoundToBf16(std::sqrt(static_cast<float>(model_.hidden)));
  Doubles x;
  for (const TokenId id : ids) {
    std::vector<double>& row = x.emplace_back();
    for (int64_t h = 0; h < model_.hidden; ++h) {
      row.push_back(scale * static_cast<double>(table[static_cast<size_t>(id * model_.hidden + h)]));
    }
  }
  return x;
}

Doubles GemmaReference::Condition(const Doubles& x, const Doubles& soft) const {
  const Doubles zeros(x.size(), std::vector<double>(static_cast<size_t>(model_.hidden)));
  const Doubles more =
      Mlp("self_conditioning.", Norm(soft.empty() ? zeros : soft, "self_conditioning.pre_norm.weight"));
  Doubles out;
  for (size_t n = 0; n < x.size(); ++n) {
    std::vector<double> sum = x[n];
    for (size_t h = 0; h < sum.size(); ++h) sum[h] += more[n][h];
    out.push_back(Normed(sum));
  }
  return out;
}

void GemmaReference::Rotate(std::vector<double>& head, int64_t position, bool full) const {
  const size_t half = head.size() / 2, turned = full ? static_cast<size_t>(model_.rotary_size) / 2 : half;
  for (size_t i = 0; i < turned; ++i) {
    const double frequency =
        std::pow(full ? 1e6 : 1e4, -2.0 * static_cast<double>(i) / static_cast<double>(head.size()));
    const double angle = static_cast<double>(position) * frequency, low = head[i], high = head[i + half];
    head[i] = low * std::cos(angle) - high * std::sin(angle);
    head[i + half] = high * std::cos(angle) + low * std::sin(angle);
  }
}

Doubles GemmaReference::Attention(int64_t layer, const Doubles& x, const Pass& pass) const {
  const bool full = model_.full[static_cast<size_t>(layer)] != 0;
  const int64_t hd = full ? model_.full_head_size : model_.head_size;
  const int64_t kv_heads = full ? model_.full_kv_heads : model_.kv_heads;
  const auto of = [&](const char* name) { return LayerName(layer, name); };
  const Doubles q = Product(x, model_.Of(of("self_attn.q_proj.weight")).data(), model_.heads * hd);
  const Doubles k = Product(x, model_.Of(of("self_attn.k_proj.weight")).data(), kv_heads * hd);
  const Doubles v = full ? k : Product(x, model_.Of(of("self_attn.v_proj.weight")).data(), kv_heads * hd);
  const auto head_of = [&](const std::vector<double>& row, int64_t head) {
    return std::vector<double>(row.begin() + head * hd, row.begin() + (head + 1) * hd);
  };
  const auto gained = [&](std::vector<double> head, const char* gain) {
    head = Normed(head);
    for (size_t i = 0; i < head.size(); ++i) head[i] *= static_cast<double>(model_.Of(of(gain))[i]);
    return head;
  };
  Keys own;
  for (int64_t head = 0; head < kv_heads; ++head) {
    Doubles& keys = own.keys.emplace_back();
    Doubles& values = own.values.emplace_back();
    for (size_t n = 0; n < x.size(); ++n) {
      keys.push_back(gained(head_of(k[n], head), "self_attn.k_norm.weight"));
      Rotate(keys.back(), pass.first_position + static_cast<int64_t>(n), full);
      values.push_back(Normed(head_of(v[n], head)));
    }
  }
  Doubles mixed(x.size());
  for (size_t n = 0; n < x.size(); ++n) {
    for (int64_t head = 0; head < model_.heads; ++head) {
      const auto kv = static_cast<size_t>(head * kv_heads / model_.heads);
      std::vector<double> query = gained(head_of(q[n], head), "self_attn.q_norm.weight");
      Rotate(query, pass.first_position + static_cast<int64_t>(n), full);
      Doubles keys, values;
      if (pass.decoder) {
        const Keys& committed = (*pass.cache)[static_cast<size_t>(layer)];
        const auto count = static_cast<int64_t>(committed.keys[kv].size());
        for (int64_t j = full ? 0 : std::max<int64_t>(0, count - (model_.window - 1)); j < count; ++j) {
          keys.push_back(committed.keys[kv][static_cast<size_t>(j)]);
          values.push_back(committed.values[kv][static_cast<size_t>(j)]);
        }
        keys.insert(keys.end(), own.keys[kv].begin(), own.keys[kv].end());
        values.insert(values.end(), own.values[kv].begin(), own.values[kv].end());
      } else {
        for (size_t j = 0; j <= n; ++j) {
          if (!full && static_cast<int64_t>(n - j) >= model_.window) continue;
          keys.push_back(own.keys[kv][j]);
          values.push_back(own.values[kv][j]);
        }
      }
      std::vector<double> scores;
      for (const std::vector<double>& key : keys) {
        scores.push_back(std::inner_product(query.begin(), query.end(), key.begin(), 0.0));
      }
      const std::vector<double> shares = Softmax(scores, 1.0);
      for (int64_t i = 0; i < hd; ++i) {
        double sum = 0.0;
        for (size_t j = 0; j < values.size(); ++j) sum += shares[j] * values[j][static_cast<size_t>(i)];
        mixed[n].push_back(sum);
      }
    }
  }
  if (!pass.decoder) (*pass.cache)[static_cast<size_t>(layer)] = std::move(own);
  return Product(mixed, model_.Of(of("self_attn.o_proj.weight")).data(), model_.hidden);
}

Doubles GemmaReference::Experts(int64_t layer, const Doubles& h) const {
  const auto of = [&](const char* name) { return LayerName(layer, name); };
  const int64_t H = model_.hidden, Im = model_.expert_mlp;
  Doubles routed = Norm(h, of("router.scale"));
  for (std::vector<double>& row : routed) {
    for (double& v : row) v /= std::sqrt(static_cast<double>(H));
  }
  const Doubles logits = Product(routed, model_.Of(of("router.proj.weight")).data(), model_.experts);
  const Doubles x = Norm(h, of("pre_feedforward_layernorm_2.weight"));
  Doubles out;
  for (size_t n = 0; n < h.size(); ++n) {
    const std::vector<double> p = Softmax(logits[n], 1.0);
    std::vector<size_t> order(p.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
    double total = 0.0;
    for (int64_t i = 0; i < model_.chosen; ++i) total += p[order[static_cast<size_t>(i)]];
    std::vector<double>& sum = out.emplace_back(static_cast<size_t>(H));
    for (int64_t i = 0; i < model_.chosen; ++i) {
      const size_t e = order[static_cast<size_t>(i)];
      const double weight = p[e] / total * static_cast<double>(model_.Of(of("router.per_expert_scale"))[e]);
      const float* const gate_up = model_.Of(of("experts.gate_up_proj")).data() + static_cast<int64_t>(e) * 2 * Im * H;
      const float* const down = model_.Of(of("experts.down_proj")).data() + static_cast<int64_t>(e) * H * Im;
      const Doubles both = Product({x[n]}, gate_up, 2 * Im);
      Doubles inner(1);
      for (int64_t c = 0; c < Im; ++c) {
        inner[0].push_back(Gelu(both[0][static_cast<size_t>(c)]) * both[0][static_cast<size_t>(Im + c)]);
      }
      const Doubles of_expert = Product(inner, down, H);
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += weight * of_expert[0][c];
    }
  }
  return out;
}

Doubles GemmaReference::RunLayers(Doubles h, const Pass& pass) const {
  const auto add = [](Doubles& to, const Doubles& what) {
    for (size_t n = 0; n < to.size(); ++n) {
      for (size_t c = 0; c < to[n].size(); ++c) to[n][c] += what[n][c];
    }
  };
  for (int64_t i = 0; i < static_cast<int64_t>(model_.full.size()); ++i) {
    const auto of = [&](const char* name) { return LayerName(i, name); };
    add(h, Norm(Attention(i, Norm(h, of("input_layernorm.weight")), pass), of("post_attention_layernorm.weight")));
    Doubles dense = Norm(Mlp(of("mlp."), Norm(h, of("pre_feedforward_layernorm.weight"))),
                         of("post_feedforward_layernorm_1.weight"));
    add(dense, Norm(Experts(i, h), of("post_feedforward_layernorm_2.weight")));
    add(h, Norm(dense, of("post_feedforward_layernorm.weight")));
    for (std::vector<double>& row : h) {
      for (double& v : row) v *= static_cast<double>(model_.Of(of("layer_scalar"))[0]);
    }
  }
  return h;
}

Doubles GemmaReference::HeadOf(const Doubles& h) const {
  const double cap = model_.soft_cap;
  Doubles z = Product(Norm(h, "norm.weight"), model_.Of("embed_tokens.weight").data(), model_.vocabulary);
  for (std::vector<double>& row : z) {
    for (double& v : row) v = cap * std::tanh(v / cap);
  }
  return z;
}

Doubles GemmaReference::EncoderLogits(const std::vector<TokenId>& committed) const {
  std::vector<Keys> cache(model_.full.size());
  return HeadOf(RunLayers(Embed(committed), {.cache = &cache}));
}

Doubles GemmaReference::Logits(const std::vector<TokenId>& committed, const std::vector<TokenId>& canvas,
                               const Doubles& soft) const {
  std::vector<Keys> cache(model_.full.size());
  RunLayers(Embed(committed), {.cache = &cache});
  const Pass pass = {.decoder = true, .first_position = static_cast<int64_t>(committed.size()), .cache = &cache};
  return HeadOf(RunLayers(Condition(Embed(canvas), soft), pass));
}

Doubles GemmaReference::SoftEmbedding(const Doubles& logits, double temperature) const {
  const std::vector<float>& table = model_.Of("embed_tokens.weight");
  const double scale = RoundToBf16(std::sqrt(static_cast<float>(model_.hidden)));
  Doubles soft;
  for (const std::vector<double>& row : logits) {
    const std::vector<double> p = Softmax(row, temperature);
    std::vector<double>& sum = soft.emplace_back(static_cast<size_t>(model_.hidden));
    for (size_t v = 0; v < p.size(); ++v) {
      for (size_t h = 0; h < sum.size(); ++h) sum[h] += scale * p[v] * static_cast<double>(table[v * sum.size() + h]);
    }
  }
  return soft;
}

}  // namespace quicksilver
