#include "tests/model/plain_network.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"

namespace quicksilver {
namespace {

using Row = std::vector<double>;

class Maker {
 public:
  explicit Maker(uint32_t seed) : random_(seed) {}
  PlainMatrix Matrix(int64_t rows, int64_t cols, double spread) {
    PlainMatrix made{rows, cols, std::vector<float>(static_cast<size_t>(rows * cols))};
    for (float& value : made.values) value = static_cast<float>(spread * normal_(random_));
    return made;
  }
  /// Keeps the size of what it multiplies.
  PlainMatrix Weight(int64_t rows, int64_t cols, double gain = 1.0) {
    return Matrix(rows, cols, gain / std::sqrt(static_cast<double>(cols)));
  }
  PlainMatrix Gain(int64_t cols) {
    PlainMatrix made = Matrix(1, cols, 0.1);
    for (float& value : made.values) value += 1.0f;
    return made;
  }
  PlainMlp Mlp(int64_t width, int64_t hidden) {
    return {Weight(width, hidden), Weight(width, hidden), Weight(hidden, width)};
  }

 private:
  std::mt19937 random_;
  std::normal_distribution<double> normal_;
};

Row Times(const PlainMatrix& weight, const Row& x) {
  Row y(static_cast<size_t>(weight.rows), 0.0);
  for (int64_t r = 0; r < weight.rows; ++r) {
    for (int64_t c = 0; c < weight.cols; ++c) y[r] += weight.at(r, c) * x[c];
  }
  return y;
}

void AddTo(Row& x, const Row& y, double scale = 1.0) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += scale * y[i];
}

/// Every run of `gain`'s width is normed by itself.
Row Normed(const Row& x, const PlainMatrix& gain, double epsilon) {
  Row y = x;
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(gain.cols)) {
    double squares = 0.0;
    for (int64_t i = 0; i < gain.cols; ++i) squares += x[first + i] * x[first + i];
    const double size = std::sqrt(squares / static_cast<double>(gain.cols) + epsilon);
    for (int64_t i = 0; i < gain.cols; ++i) y[first + i] = x[first + i] / size * gain.at(0, i);
  }
  return y;
}

void Rotate(Row& heads, int64_t position, const PlainSizes& s) {
  const int64_t half = s.rotated / 2;
  for (size_t head = 0; head < heads.size(); head += static_cast<size_t>(s.head_size)) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) *
                           std::pow(s.theta, -2.0 * static_cast<double>(i) / static_cast<double>(s.rotated));
      double& low = heads[head + i];
      double& high = heads[head + i + half];
      const double a = low, b = high;
      low = a * std::cos(angle) - b * std::sin(angle);
      high = b * std::cos(angle) + a * std::sin(angle);
    }
  }
}

Row Gated(const PlainMlp& mlp, const Row& x) {
  Row gate = Times(mlp.gate, x);
  const Row up = Times(mlp.up, x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
  return Times(mlp.down, gate);
}

/// q, k or v of a token.
Row Projected(const PlainMatrix& weight, const PlainMatrix& bias, const PlainMatrix& norm, const Row& x,
              const PlainSizes& s) {
  Row y = Times(weight, x);
  for (size_t i = 0; i < bias.values.size(); ++i) y[i] += bias.values[i];
  return norm.cols > 0 ? Normed(y, norm, s.epsilon) : y;
}

void Attend(const PlainLayer& layer, const PlainSizes& s, std::vector<Row>& hidden) {
  std::vector<Row> q, k, v;
  const auto tokens = static_cast<int64_t>(hidden.size());
  for (int64_t t = 0; t < tokens; ++t) {
    const Row x = Normed(hidden[t], layer.attention_norm, s.epsilon);
    q.push_back(Projected(layer.q, layer.q_bias, layer.q_norm, x, s));
    k.push_back(Projected(layer.k, layer.k_bias, layer.k_norm, x, s));
    v.push_back(Projected(layer.v, layer.v_bias, PlainMatrix(), x, s));
    Rotate(q.back(), t, s);
    Rotate(k.back(), t, s);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t seen = s.block == 0 ? tokens : std::min(tokens, (t / s.block + 1) * s.block);
    Row mixed(static_cast<size_t>(s.heads * s.head_size), 0.0);
    for (int64_t head = 0; head < s.heads; ++head) {
      const int64_t at = head * s.head_size, kv_at = head / (s.heads / s.kv_heads) * s.head_size;
      Row weight(static_cast<size_t>(seen), 0.0);
      double sum = 0.0;
      for (int64_t j = 0; j < seen; ++j) {
        double score = 0.0;
        for (int64_t i = 0; i < s.head_size; ++i) score += q[t][at + i] * k[j][kv_at + i];
        weight[j] = std::exp(score / std::sqrt(static_cast<double>(s.head_size)));
        sum += weight[j];
      }
      for (int64_t j = 0; j < seen; ++j) {
        for (int64_t i = 0; i < s.head_size; ++i) mixed[at + i] += weight[j] / sum * v[j][kv_at + i];
      }
    }
    AddTo(hidden[t], Times(layer.out, mixed));
  }
}

/// Indices of the `count` largest, best first.
std::vector<int64_t> Largest(const Row& values, int64_t count) {
  std::vector<int64_t> order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] > values[b]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

Row Scores(const PlainLayer& layer, const PlainRouting& r, const Row& x) {
  Row scores = Times(layer.router, x);
  double sum = 0.0;
  for (double& score : scores) {
    score = r.sigmoid ? 1.0 / (1.0 + std::exp(-score)) : std::exp(score);
    sum += score;
  }
  if (!r.sigmoid) {
    for (double& score : scores) score /= sum;
  }
  return scores;
}

/// Leaves the best groups of experts.
void KeepGroups(const PlainRouting& r, Row& biased) {
  const int64_t width = r.experts / r.groups;
  Row sums;
  for (int64_t group = 0; group < r.groups; ++group) {
    Row of_group(biased.begin() + group * width, biased.begin() + (group + 1) * width);
    std::sort(of_group.rbegin(), of_group.rend());
    sums.push_back(of_group[0] + of_group[1]);
  }
  const std::vector<int64_t> kept = Largest(sums, r.groups_kept);
  for (int64_t e = 0; e < r.experts; ++e) {
    if (std::find(kept.begin(), kept.end(), e / width) == kept.end()) biased[e] = -INFINITY;
  }
}

/// Leaves, for each block of tokens, the experts that some token of it wants most.
void KeepPool(const PlainSizes& s, std::vector<Row>& biased) {
  const auto tokens = static_cast<int64_t>(biased.size());
  for (int64_t first = 0; first < tokens; first += s.block) {
    const int64_t end = std::min(tokens, first + s.block);
    Row best(biased[first].size(), -INFINITY);
    for (int64_t t = first; t < end; ++t) {
      for (size_t e = 0; e < best.size(); ++e) best[e] = std::max(best[e], biased[t][e]);
    }
    const std::vector<int64_t> kept = Largest(best, s.routing.pooled);
    for (int64_t t = first; t < end; ++t) {
      for (size_t e = 0; e < best.size(); ++e) {
        if (std::find(kept.begin(), kept.end(), static_cast<int64_t>(e)) == kept.end()) biased[t][e] = -INFINITY;
      }
    }
  }
}

void Mix(const PlainLayer& layer, const PlainSizes& s, std::vector<Row>& hidden) {
  const PlainRouting& r = s.routing;
  std::vector<Row> x, scores, biased;
  for (const Row& token : hidden) {
    x.push_back(Normed(token, layer.mlp_norm, s.epsilon));
    scores.push_back(Scores(layer, r, x.back()));
    biased.push_back(scores.back());
    for (size_t e = 0; e < layer.expert_bias.values.size(); ++e) biased.back()[e] += layer.expert_bias.values[e];
    if (r.weigh_biased) scores.back() = biased.back();
    if (r.groups > 1) KeepGroups(r, biased.back());
  }
  if (r.pooled > 0) KeepPool(s, biased);
  for (size_t t = 0; t < hidden.size(); ++t) {
    const std::vector<int64_t> chosen = Largest(biased[t], r.chosen);
    double sum = 0.0;
    for (const int64_t e : chosen) sum += scores[t][e];
    for (const int64_t e : chosen) {
      AddTo(hidden[t], Gated(layer.experts[e], x[t]), scores[t][e] / (r.normalise ? sum : 1.0) * r.scale);
    }
    if (r.shared_width > 0) AddTo(hidden[t], Gated(layer.mlp, x[t]));
  }
}

PlainLayer MakeLayer(const PlainSizes& s, bool experts, Maker& make) {
  const int64_t query = s.heads * s.head_size, kv = s.kv_heads * s.head_size;
  PlainLayer layer;
  layer.attention_norm = make.Gain(s.hidden);
  layer.q = make.Weight(query, s.hidden, 2.0);
  layer.k = make.Weight(kv, s.hidden, 2.0);
  layer.v = make.Weight(kv, s.hidden);
  if (s.qkv_bias) {
    layer.q_bias = make.Matrix(1, query, 0.5);
    layer.k_bias = make.Matrix(1, kv, 0.5);
    layer.v_bias = make.Matrix(1, kv, 0.5);
  }
  if (s.head_norms) {
    layer.q_norm = make.Gain(s.head_size);
    layer.k_norm = make.Gain(s.head_size);
  }
  layer.out = make.Weight(s.hidden, query);
  layer.mlp_norm = make.Gain(s.hidden);
  if (!experts) {
    layer.mlp = make.Mlp(s.mlp, s.hidden);
    return layer;
  }
  layer.router = make.Weight(s.routing.experts, s.hidden, 2.0);
  if (s.routing.bias) layer.expert_bias = make.Matrix(1, s.routing.experts, 0.2);
  if (s.routing.shared_width > 0) layer.mlp = make.Mlp(s.routing.shared_width, s.hidden);
  for (int64_t e = 0; e < s.routing.experts; ++e) layer.experts.push_back(make.Mlp(s.routing.width, s.hidden));
  return layer;
}

}  // namespace

PlainNetwork MakePlainNetwork(const PlainSizes& sizes, uint32_t seed) {
  Maker make(seed);
  PlainNetwork network;
  network.sizes = sizes;
  network.embedding = make.Matrix(sizes.vocabulary, sizes.hidden, 1.0);
  for (int64_t i = 0; i < sizes.layers; ++i) network.layers.push_back(MakeLayer(sizes, network.HasExperts(i), make));
  network.final_norm = make.Gain(sizes.hidden);
  network.head = sizes.tied ? network.embedding : make.Weight(sizes.vocabulary, sizes.hidden, 3.0);
  return network;
}

std::vector<std::vector<double>> PlainLogits(const PlainNetwork& network, const std::vector<TokenId>& ids) {
  const PlainSizes& s = network.sizes;
  std::vector<Row> hidden;
  for (const TokenId id : ids) {
    Row& token = hidden.emplace_back();
    for (int64_t c = 0; c < s.hidden; ++c) token.push_back(network.embedding.at(id, c));
  }
  for (int64_t i = 0; i < s.layers; ++i) {
    const PlainLayer& layer = network.layers[static_cast<size_t>(i)];
    Attend(layer, s, hidden);
    if (network.HasExperts(i)) {
      Mix(layer, s, hidden);
      continue;
    }
    for (Row& token : hidden) AddTo(token, Gated(layer.mlp, Normed(token, layer.mlp_norm, s.epsilon)));
  }
  std::vector<Row> logits;
  for (const Row& token : hidden) logits.push_back(Times(network.head, Normed(token, network.final_norm, s.epsilon)));
  return logits;
}

namespace {

/// Matrices of equal width, one below the other.
PlainMatrix Below(const std::vector<const PlainMatrix*>& parts) {
  PlainMatrix all{0, parts.front()->cols, {}};
  for (const PlainMatrix* part : parts) {
    all.rows += part->rows;
    all.values.insert(all.values.end(), part->values.begin(), part->values.end());
  }
  return all;
}

class Store {
 public:
  void Vector(const std::string& name, const PlainMatrix& vector) {
    if (vector.cols > 0) tensors.push_back({name, {vector.cols}, vector.values});
  }
  void Matrix(const std::string& name, const PlainMatrix& matrix) {
    tensors.push_back({name, {matrix.rows, matrix.cols}, matrix.values});
  }
  void Mlp(const std::string& prefix, const PlainMlp& mlp) {
    Matrix(prefix + "gate_proj.weight", mlp.gate);
    Matrix(prefix + "up_proj.weight", mlp.up);
    Matrix(prefix + "down_proj.weight", mlp.down);
  }
  void Stack(const std::string& name, const std::vector<PlainMlp>& experts, PlainMatrix PlainMlp::*which) {
    std::vector<const PlainMatrix*> parts;
    for (const PlainMlp& expert : experts) parts.push_back(&(expert.*which));
    tensors.push_back(
        {name, {static_cast<int64_t>(parts.size()), parts.front()->rows, parts.front()->cols}, Below(parts).values});
  }

  std::vector<StoredPlain> tensors;
};

void StoreAttention(const std::string& prefix, const PlainLayer& layer, bool fused, Store& store) {
  const std::string attention = prefix + (fused ? "attention." : "self_attn.");
  if (fused) {
    store.Matrix(attention + "query_key_value.weight", Below({&layer.q, &layer.k, &layer.v}));
  } else {
    store.Matrix(attention + "q_proj.weight", layer.q);
    store.Matrix(attention + "k_proj.weight", layer.k);
    store.Matrix(attention + "v_proj.weight", layer.v);
  }
  store.Vector(attention + "q_proj.bias", layer.q_bias);
  store.Vector(attention + "k_proj.bias", layer.k_bias);
  store.Vector(attention + "v_proj.bias", layer.v_bias);
  store.Vector(attention + (fused ? "query_layernorm.weight" : "q_norm.weight"), layer.q_norm);
  store.Vector(attention + (fused ? "key_layernorm.weight" : "k_norm.weight"), layer.k_norm);
  store.Matrix(attention + (fused ? "dense.weight" : "o_proj.weight"), layer.out);
}

void StoreExperts(const std::string& prefix, const PlainLayer& layer, PlainNames names, Store& store) {
  store.Matrix(prefix + "mlp.gate.weight", layer.router);
  store.Vector(prefix + (names == PlainNames::kLladaMoe ? "mlp.expert_bias" : "mlp.gate.expert_bias"),
               layer.expert_bias);
  if (names == PlainNames::kLlada2Stacked) {
    store.Stack(prefix + "mlp.experts.gate_proj", layer.experts, &PlainMlp::gate);
    store.Stack(prefix + "mlp.experts.up_proj", layer.experts, &PlainMlp::up);
    store.Stack(prefix + "mlp.experts.down_proj", layer.experts, &PlainMlp::down);
  } else {
    for (size_t e = 0; e < layer.experts.size(); ++e) {
      store.Mlp(absl::StrCat(prefix, "mlp.experts.", e, "."), layer.experts[e]);
    }
  }
  if (layer.mlp.gate.rows == 0) return;
  store.Mlp(prefix + (names == PlainNames::kLladaMoe ? "shared_expert." : "mlp.shared_experts."), layer.mlp);
}

}  // namespace

std::vector<StoredPlain> StoreNetwork(const PlainNetwork& network, PlainNames names) {
  const bool llada2 = names == PlainNames::kLlada2 || names == PlainNames::kLlada2Stacked;
  Store store;
  store.Matrix(llada2 ? "model.word_embeddings.weight" : "model.embed_tokens.weight", network.embedding);
  for (size_t i = 0; i < network.layers.size(); ++i) {
    const PlainLayer& layer = network.layers[i];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    store.Vector(prefix + "input_layernorm.weight", layer.attention_norm);
    StoreAttention(prefix, layer, llada2, store);
    store.Vector(prefix + "post_attention_layernorm.weight", layer.mlp_norm);
    if (network.HasExperts(static_cast<int64_t>(i))) {
      StoreExperts(prefix, layer, names, store);
    } else {
      store.Mlp(prefix + "mlp.", layer.mlp);
    }
  }
  store.Vector("model.norm.weight", network.final_norm);
  if (!network.sizes.tied) store.Matrix("lm_head.weight", network.head);
  return std::move(store.tensors);
}

std::string PlainSafetensors(const std::vector<StoredPlain>& tensors) {
  nlohmann::ordered_json header;
  size_t offset = 0;
  std::string data;
  for (const StoredPlain& tensor : tensors) {
    const size_t bytes = tensor.values.size() * sizeof(float);
    header[tensor.name] = {{"dtype", "F32"}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    data.append(reinterpret_cast<const char*>(tensor.values.data()), bytes);
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text + data;
}

}  // namespace quicksilver
