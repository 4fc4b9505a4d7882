#include "worker/model/load_spec.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "worker/checkpoint/file.h"
#include "worker/checkpoint/json_file.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/model/families/config_fields.h"
#include "worker/model/families/family.h"
#include "worker/model/families/tokenizer_facts.h"
#include "worker/model/tensor_plan.h"

namespace quicksilver {
namespace {

constexpr uint64_t kConfigBytesMax = 4 << 20;
constexpr uint64_t kTokenizerBytesMax = 256 << 20;

std::string PathOf(const Checkpoint& checkpoint, const char* name) {
  return absl::StrCat(checkpoint.directory(), "/", name);
}

absl::StatusOr<const Family*> ChooseFamily(const ConfigFields& config) {
  const nlohmann::json* architectures = config.Find("architectures");
  std::string found = "none";
  if (architectures != nullptr && architectures->is_array() && architectures->size() == 1 &&
      architectures->front().is_string()) {
    const std::string& name = architectures->front().get_ref<const std::string&>();
    if (const Family* family = FindFamily(name)) return family;
    found = PrintableName(name);
  } else if (architectures != nullptr) {
    found = PrintableName(architectures->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace));
  }
  const std::string supported = absl::StrJoin(
      Families(), ", ", [](std::string* out, const Family& family) { absl::StrAppend(out, family.architecture); });
  return config.Error("architectures", absl::StrCat("one of the supported ", supported), found);
}

absl::StatusOr<TokenizerFacts> LoadTokenizerFacts(const Checkpoint& checkpoint) {
  const std::string path = PathOf(checkpoint, "tokenizer.json");
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kTokenizerBytesMax);
  if (absl::IsNotFound(text.status())) return TokenizerFacts();
  if (!text.ok()) return text.status();
  return ReadTokenizerFacts(path, *text);
}

bool IsPublished(const Family& family, int64_t vocabulary) {
  const std::vector<int64_t>& published = family.published_vocabularies;
  return std::find(published.begin(), published.end(), vocabulary) != published.end();
}

absl::Status ResolveMask(const ConfigFields& config, const TokenizerFacts& tokenizer, const Family& family,
                         const SpecOptions& options, ModelSpec& spec) {
  if (family.mask_token == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<TokenId> stated, config.Ids("mask_token_id"));
  const auto token = tokenizer.added_tokens.find(family.mask_token);
  const bool in_tokenizer = token != tokenizer.added_tokens.end();
  if (stated.size() > 1) return config.Error("mask_token_id", "one id", absl::StrJoin(stated, ", "));
  if (!stated.empty() && in_tokenizer && stated[0] != token->second) {
    return config.Error("mask_token_id", absl::StrCat(token->second, " as ", family.mask_token, " in tokenizer.json"),
                        absl::StrCat(stated[0]));
  }
  if (!stated.empty()) {
    spec.mask_id = stated[0];
  } else if (in_tokenizer) {
    spec.mask_id = token->second;
  } else if (IsPublished(family, spec.vocabulary)) {
    spec.mask_id = family.published_mask_id;
  } else if (options.mask_id >= 0) {
    spec.mask_id = options.mask_id;
  } else {
    return config.Error("mask_token_id",
                        absl::StrCat("an id, here, as ", family.mask_token, " in tokenizer.json or by --mask-id"),
                        "none");
  }
  if (options.mask_id >= 0 && options.mask_id != spec.mask_id) {
    return config.Error("mask_token_id", absl::StrCat(options.mask_id, " as --mask-id"), absl::StrCat(spec.mask_id));
  }
  if (spec.mask_id < spec.tokens) return absl::OkStatus();
  return config.Error("mask_token_id", absl::StrCat("an id below ", spec.tokens), absl::StrCat(spec.mask_id));
}

absl::Status CheckControlTokens(const ConfigFields& config, const ModelSpec& spec) {
  const std::pair<const char*, TokenId> tokens[] = {{"delete_token_id", spec.delete_id},
                                                    {"split_token_id", spec.insert_id}};
  for (const auto& [field, id] : tokens) {
    if (id < spec.tokens && (id < 0 || id != spec.mask_id)) continue;
    return config.Error(field, absl::StrCat("an id below ", spec.tokens, " other than the mask's"), absl::StrCat(id));
  }
  if (spec.delete_id < 0 || spec.delete_id != spec.insert_id) return absl::OkStatus();
  return config.Error("split_token_id", "another id than delete_token_id", absl::StrCat(spec.insert_id));
}

absl::Status ResolveStops(const ConfigFields& config, const Checkpoint& checkpoint, const TokenizerFacts& tokenizer,
                          const Family& family, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.stop_ids, config.Ids("eos_token_id"));
  if (!spec.stop_ids.empty()) spec.eos_id = spec.stop_ids.front();
  const std::string path = PathOf(checkpoint, "generation_config.json");
  const absl::StatusOr<std::string> text = ReadSmallFile(path, kConfigBytesMax);
  if (text.ok()) {
    ASSIGN_OR_RETURN(nlohmann::json parsed, ParseJsonObject(path, *text));
    ASSIGN_OR_RETURN(const std::vector<TokenId> more, ConfigFields(path, std::move(parsed)).Ids("eos_token_id"));
    spec.stop_ids.insert(spec.stop_ids.end(), more.begin(), more.end());
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  for (const char* name : family.stop_tokens) {
    const auto token = tokenizer.added_tokens.find(name);
    if (token != tokenizer.added_tokens.end()) spec.stop_ids.push_back(token->second);
  }
  if (IsPublished(family, spec.vocabulary)) {
    spec.stop_ids.insert(spec.stop_ids.end(), family.published_stop_ids.begin(), family.published_stop_ids.end());
  }
  std::sort(spec.stop_ids.begin(), spec.stop_ids.end());
  spec.stop_ids.erase(std::unique(spec.stop_ids.begin(), spec.stop_ids.end()), spec.stop_ids.end());
  if (spec.eos_id < 0 && !spec.stop_ids.empty()) spec.eos_id = spec.stop_ids.front();
  for (const TokenId id : spec.stop_ids) {
    if (id >= spec.tokens || id == spec.mask_id) {
      return config.Error("eos_token_id", absl::StrCat("ids below ", spec.tokens, " other than the mask's"),
                          absl::StrCat(id));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSizes(const ConfigFields& config, const ModelSpec& spec) {
  if (spec.heads % spec.kv_heads != 0) {
    return config.Error("num_key_value_heads", absl::StrCat("a divisor of the ", spec.heads, " query heads"),
                        absl::StrCat(spec.kv_heads));
  }
  if (spec.head_size % 2 != 0) return config.Error("head_dim", "an even number", absl::StrCat(spec.head_size));
  return absl::OkStatus();
}

/// The block of --block-length, unless routing pools the experts of the block that config.json states.
absl::Status ResolveBlock(const ConfigFields& config, const SpecOptions& options, ModelSpec& spec) {
  if (options.block_length != 0) spec.block_length = options.block_length;
  if (spec.block_length < 1 || spec.block_length > kBlockMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("block length: expected 1 to ", kBlockMax, ", found ", spec.block_length));
  }
  const int32_t pooled = spec.moe.routing.pool_block;
  if (pooled == 0 || pooled == spec.block_length) return absl::OkStatus();
  return config.Error("block_size",
                      absl::StrCat("the block length (", spec.block_length, "), for experts of one block"),
                      absl::StrCat(pooled));
}

/// Experts are stored one by one or, by a trainer, in stacks.
absl::Status ResolveExperts(const ConfigFields& config, const Checkpoint& checkpoint, const Family& family,
                            const SpecOptions& options, ModelSpec& spec) {
  MoeSpec& moe = spec.moe;
  moe.expert_parallel = options.expert_parallel;
  if (options.expert_parallel && moe.experts == 0) {
    return config.Error("num_experts", "experts, for --expert-parallel", "none");
  }
  if (moe.experts == 0 || moe.first_layer >= spec.layers || family.tensors.stacked_gate == nullptr) {
    return absl::OkStatus();
  }
  const std::string stacked =
      absl::StrCat(family.tensors.layer_prefix, moe.first_layer, ".", family.tensors.stacked_gate);
  moe.stacked = checkpoint.Find(stacked) != nullptr;
  return absl::OkStatus();
}

/// The dtype of the embedding stands for all matrices. A 16-bit file whose config.json states the other 16-bit type
/// would load and speak garbage, so it is refused; other differences are honest conversions.
absl::Status ResolveDtype(const ConfigFields& config, const Checkpoint& checkpoint, ModelSpec& spec) {
  const std::string name = ExpectedTensors(spec).front().name;
  const StoredTensor* embedding = checkpoint.Find(name);
  if (embedding == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.directory(), ": tensor '", name, "': expected in the checkpoint, found none"));
  }
  spec.checkpoint_dtype = embedding->type == StoredType::kBf16 ? DType::kBf16 : DType::kF32;
  const char* const field = config.Has("torch_dtype") ? "torch_dtype" : "dtype";
  ASSIGN_OR_RETURN(const std::string stated, config.Text(field, ""));
  const char* const other_type = embedding->type == StoredType::kBf16  ? "float16"
                                 : embedding->type == StoredType::kF16 ? "bfloat16"
                                                                       : nullptr;
  const bool swapped = other_type != nullptr && absl::string_view(stated) == other_type;
  if (!swapped) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(embedding->file, ": tensor '", embedding->name,
                                                 "': expected the torch_dtype of config.json (", stated, "), found ",
                                                 StoredTypeName(embedding->type)));
}

}  // namespace

absl::StatusOr<ModelSpec> LoadModelSpec(const Checkpoint& checkpoint, const SpecOptions& options) {
  const std::string path = PathOf(checkpoint, "config.json");
  ASSIGN_OR_RETURN(nlohmann::json parsed, ParseJsonObject(path, checkpoint.config_text()));
  const ConfigFields config(path, std::move(parsed));
  ASSIGN_OR_RETURN(const Family* family, ChooseFamily(config));
  ModelSpec spec;
  spec.architecture = family->architecture;
  spec.family = family->name;
  RETURN_IF_ERROR(family->read_config(config, spec));
  if (family->read_names != nullptr) RETURN_IF_ERROR(family->read_names(checkpoint, spec));
  RETURN_IF_ERROR(CheckSizes(config, spec));
  if (family->tied_field != nullptr && !config.Has(family->tied_field))
    spec.tied = checkpoint.Find(family->tensors.lm_head) == nullptr;
  RETURN_IF_ERROR(ResolveBlock(config, options, spec));
  RETURN_IF_ERROR(ResolveExperts(config, checkpoint, *family, options, spec));
  ASSIGN_OR_RETURN(const TokenizerFacts tokenizer, LoadTokenizerFacts(checkpoint));
  if (tokenizer.ids_end > spec.vocabulary) {
    return config.Error("vocab_size", absl::StrCat("at least ", tokenizer.ids_end, ", the ids of tokenizer.json"),
                        absl::StrCat(spec.vocabulary));
  }
  if (tokenizer.ids_end > 0) spec.tokens = std::min(spec.tokens, tokenizer.ids_end);
  RETURN_IF_ERROR(ResolveMask(config, tokenizer, *family, options, spec));
  RETURN_IF_ERROR(CheckControlTokens(config, spec));
  RETURN_IF_ERROR(ResolveStops(config, checkpoint, tokenizer, *family, spec));
  RETURN_IF_ERROR(ResolveDtype(config, checkpoint, spec));
  return spec;
}

}  // namespace quicksilver
