#include "tools/random_checkpoint.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/exit_codes.h"
#include "common/philox.h"
#include "common/status_macros.h"
#include "kernels/host_float.h"
#include "worker/model/families/config_fields.h"
#include "worker/model/families/family.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

constexpr size_t kWriteElements = 1 << 18;

nlohmann::json SdarConfig(const RandomCheckpointOptions& options) {
  return {{"model_type", "sdar"},
          {"attention_bias", false},
          {"block_size", options.block},
          {"head_dim", options.head_size},
          {"hidden_act", "silu"},
          {"hidden_size", options.hidden},
          {"intermediate_size", options.mlp},
          {"max_position_embeddings", options.positions},
          {"num_attention_heads", options.heads},
          {"num_hidden_layers", options.layers},
          {"num_key_value_heads", options.kv_heads},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1000000.0},
          {"tie_word_embeddings", options.tied}};
}

nlohmann::json LladaConfig(const RandomCheckpointOptions& options) {
  return {{"model_type", "llada"},
          {"activation_type", "silu"},
          {"block_type", "llama"},
          {"d_model", options.hidden},
          {"embedding_size", options.vocabulary},
          {"include_bias", false},
          {"layer_norm_type", "rms"},
          {"max_sequence_length", options.positions},
          {"mlp_hidden_size", options.mlp},
          {"n_heads", options.heads},
          {"n_kv_heads", options.kv_heads},
          {"n_layers", options.layers},
          {"rms_norm_eps", 1e-5},
          {"rope", true},
          {"rope_full_precision", true},
          {"rope_theta", 500000.0},
          {"weight_tying", options.tied}};
}

absl::StatusOr<nlohmann::json> ConfigOf(const RandomCheckpointOptions& options) {
  nlohmann::json config;
  if (options.family == "sdar") {
    config = SdarConfig(options);
    config["architectures"] = {"SDARForCausalLM"};
  } else if (options.family == "llada") {
    config = LladaConfig(options);
    config["architectures"] = {"LLaDAModelLM"};
  } else {
    return absl::InvalidArgumentError(absl::StrCat("family: expected sdar or llada, found ", options.family));
  }
  if (options.vocabulary < 4) {
    return absl::InvalidArgumentError(absl::StrCat("vocabulary: expected at least 4, found ", options.vocabulary));
  }
  const char* names[] = {"float32", "bfloat16", "float16"};
  config["torch_dtype"] = names[static_cast<int>(options.type)];
  config["vocab_size"] = options.vocabulary;
  config["mask_token_id"] = options.vocabulary - 1;
  config["eos_token_id"] = options.vocabulary - 2;
  return config;
}

/// Roughly normal numbers: the sum of four uniform bytes, from a counter-based generator. Exactly representable bits do
/// not matter here, speed does.
class NormalNoise {
 public:
  NormalNoise(uint64_t seed, uint32_t tensor) : seed_(seed), tensor_(tensor) {
    for (int i = 0; i < 256; ++i) {
      for (int j = 0; j < 256; ++j) table_[i * 256 + j] = static_cast<float>(i + j - 255);
    }
  }
  /// Variance 1.
  void Fill(uint64_t first, size_t count, float* out) const {
    constexpr float kScale = 1.0f / 147.8f;  // Four bytes: sqrt(4 (256^2 - 1) / 12).
    for (size_t i = 0; i < count; i += 4) {
      const uint64_t counter = (first + i) / 4;
      const PhiloxWords words =
          Philox(seed_, static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), tensor_, 0);
      for (size_t j = 0; j < 4 && i + j < count; ++j) {
        out[i + j] = (table_[words.w[j] & 0xffff] + table_[words.w[j] >> 16]) * kScale;
      }
    }
  }

 private:
  uint64_t seed_;
  uint32_t tensor_;
  std::array<float, 65536> table_;  // Sum of the two bytes of an index, centred.
};

void Narrow(const std::vector<float>& values, size_t count, StoredType type, std::vector<char>& out) {
  out.resize(count * StoredBytes(type));
  if (type == StoredType::kF32) {
    std::memcpy(out.data(), values.data(), out.size());
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    const uint16_t element = type == StoredType::kBf16 ? FloatToBf16(values[i]) : FloatToF16(values[i]);
    std::memcpy(out.data() + i * sizeof(element), &element, sizeof(element));
  }
}

uint64_t Elements(const ExpectedTensor& tensor) {
  uint64_t elements = 1;
  for (const int64_t dimension : tensor.shape) elements *= static_cast<uint64_t>(dimension);
  return elements;
}

std::string HeaderOf(const std::vector<ExpectedTensor>& tensors, StoredType type) {
  nlohmann::ordered_json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  for (const ExpectedTensor& tensor : tensors) {
    const uint64_t end = offset + Elements(tensor) * StoredBytes(type);
    header[tensor.name] = {{"dtype", StoredTypeName(type)}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

void WriteTensor(const ExpectedTensor& tensor, const RandomCheckpointOptions& options, uint32_t number,
                 std::ofstream& out) {
  // A matrix keeps the size of what it multiplies; gains stay around 1.
  const bool gain = tensor.shape.size() == 1;
  const float scale = gain ? 0.05f : 1.0f / std::sqrt(static_cast<float>(tensor.shape.back()));
  const auto noise = std::make_unique<NormalNoise>(options.seed, number);
  std::vector<float> values(kWriteElements);
  std::vector<char> bytes;
  const uint64_t elements = Elements(tensor);
  for (uint64_t done = 0; done < elements && out; done += kWriteElements) {
    const size_t count = std::min<uint64_t>(kWriteElements, elements - done);
    noise->Fill(done, count, values.data());
    for (size_t i = 0; i < count; ++i) values[i] = values[i] * scale + (gain ? 1.0f : 0.0f);
    Narrow(values, count, options.type, bytes);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  out.close();
  return out ? absl::OkStatus() : absl::DataLossError(absl::StrCat("cannot write ", path));
}

absl::Status WriteShard(const std::string& path, const std::vector<ExpectedTensor>& tensors, uint32_t first_number,
                        const RandomCheckpointOptions& options) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  const std::string header = HeaderOf(tensors, options.type);
  const uint64_t header_bytes = header.size();
  out.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  out << header;
  for (size_t i = 0; i < tensors.size(); ++i) {
    WriteTensor(tensors[i], options, first_number + static_cast<uint32_t>(i), out);
  }
  out.close();
  return out ? absl::OkStatus() : absl::DataLossError(absl::StrCat("cannot write ", path));
}

absl::Status WriteTensors(const std::vector<ExpectedTensor>& tensors, const RandomCheckpointOptions& options) {
  if (options.shards == 1) return WriteShard(options.directory + "/model.safetensors", tensors, 0, options);
  if (options.shards < 1 || options.shards > static_cast<int64_t>(tensors.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("shards: expected 1 to ", tensors.size(), ", found ", options.shards));
  }
  nlohmann::json weight_map;
  for (int64_t shard = 0; shard < options.shards; ++shard) {
    const size_t begin = tensors.size() * shard / options.shards;
    const size_t end = tensors.size() * (shard + 1) / options.shards;
    const std::vector<ExpectedTensor> part(tensors.begin() + begin, tensors.begin() + end);
    const std::string name = absl::StrFormat("model-%05d-of-%05d.safetensors", shard + 1, options.shards);
    for (const ExpectedTensor& tensor : part) weight_map[tensor.name] = name;
    RETURN_IF_ERROR(
        WriteShard(absl::StrCat(options.directory, "/", name), part, static_cast<uint32_t>(begin), options));
  }
  return WriteText(options.directory + "/model.safetensors.index.json",
                   nlohmann::json({{"weight_map", weight_map}}).dump(2));
}

}  // namespace

absl::Status WriteRandomCheckpoint(const RandomCheckpointOptions& options) {
  ASSIGN_OR_RETURN(const nlohmann::json made, ConfigOf(options));
  const nlohmann::json config = nlohmann::json::parse(made.dump());  // Checked as it will be read.
  const std::string config_path = options.directory + "/config.json";
  const Family& family = *FindFamily(config.at("architectures").at(0));
  ModelSpec spec;
  spec.architecture = family.architecture;
  RETURN_IF_ERROR(family.read_config(ConfigFields(config_path, config), spec));
  std::error_code error;
  std::filesystem::create_directories(options.directory, error);
  if (error) return absl::DataLossError(absl::StrCat("cannot make ", options.directory, ": ", error.message()));
  RETURN_IF_ERROR(WriteText(config_path, config.dump(2)));
  RETURN_IF_ERROR(WriteText(options.directory + "/generation_config.json",
                            nlohmann::json({{"eos_token_id", options.vocabulary - 2}}).dump(2)));
  return WriteTensors(ExpectedTensors(spec), options);
}

int RunRandomCheckpoint(const std::vector<std::string>& args) {
  RandomCheckpointOptions options;
  CLI::App app("Makes a checkpoint with random weights, for tests of speed and memory.", "random_checkpoint");
  const std::map<std::string, StoredType> types = {
      {"f32", StoredType::kF32}, {"bf16", StoredType::kBf16}, {"f16", StoredType::kF16}};
  app.add_option("directory", options.directory, "Where to write it")->required();
  app.add_option("--family", options.family, "sdar or llada")->capture_default_str();
  app.add_option("--dtype", options.type, "f32, bf16 or f16 (default bf16)")->transform(CLI::Transformer(types));
  app.add_option("--hidden", options.hidden, "H")->capture_default_str();
  app.add_option("--layers", options.layers, "L")->capture_default_str();
  app.add_option("--heads", options.heads, "Query heads")->capture_default_str();
  app.add_option("--kv-heads", options.kv_heads, "Key/value heads")->capture_default_str();
  app.add_option("--head-size", options.head_size, "hd (llada: hidden / heads)")->capture_default_str();
  app.add_option("--mlp", options.mlp, "I")->capture_default_str();
  app.add_option("--vocabulary", options.vocabulary, "V")->capture_default_str();
  app.add_option("--positions", options.positions, "Longest sequence")->capture_default_str();
  app.add_option("--block", options.block, "Block length (sdar)")->capture_default_str();
  app.add_flag("--tied", options.tied, "The LM head is the embedding");
  app.add_option("--shards", options.shards, "Files")->capture_default_str();
  app.add_option("--seed", options.seed, "Seed of the weights")->capture_default_str();
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  const absl::Status written = WriteRandomCheckpoint(options);
  if (written.ok()) return kExitOk;
  std::fprintf(stderr, "random_checkpoint: %s\n", std::string(written.message()).c_str());
  return absl::IsInvalidArgument(written) ? kExitUsage : kExitInternal;
}

}  // namespace quicksilver
