#include <algorithm>
#include <memory>
#include <vector>

#include "common/check.h"
#include "worker/decoding/decoding_fields.h"
#include "worker/decoding/decoding_rule.h"
#include "worker/decoding/procedures/autoregressive.h"
#include "worker/decoding/procedures/credit.h"
#include "worker/decoding/procedures/insert_delete.h"
#include "worker/decoding/procedures/klass.h"
#include "worker/decoding/procedures/multi_block.h"
#include "worker/decoding/procedures/rank_policy.h"
#include "worker/decoding/procedures/remdm.h"
#include "worker/decoding/procedures/renoise.h"
#include "worker/decoding/procedures/sub_block.h"
#include "worker/decoding/procedures/time_grid.h"
#include "worker/decoding/procedures/token_edit.h"
#include "worker/decoding/procedures/variable_length.h"
#include "worker/decoding/procedures/wino.h"

namespace quicksilver {
namespace {

bool Allows(const ModelSpec& spec, Policy policy) {
  const bool bidirectional = spec.grid == BlockGrid::kAfterPrompt;
  const bool autoregressive = spec.grid == BlockGrid::kAbsolute && spec.block_length == 1;
  if (spec.grid == BlockGrid::kCanvas) return policy == Policy::kRenoise;
  if (autoregressive) return policy == Policy::kAutoregressive;
  if (IsRankPolicy(policy)) return true;
  if (IsTimeGridPolicy(policy)) return bidirectional && spec.shift;
  switch (policy) {
    case Policy::kCredit:
    case Policy::kKlass:
      // Not where a block's first position is written apart from the others.
      return bidirectional || !spec.shift;
    case Policy::kTokenEdit:
      return spec.family == "llada2";
    case Policy::kInsertDelete:
      return spec.delete_id >= 0 && spec.insert_id >= 0;
    case Policy::kWino:
      return !spec.shift;
    case Policy::kRemdm:
    case Policy::kMultiBlock:
      return bidirectional;
    case Policy::kVariableLength:
      return bidirectional && !spec.shift && spec.eos_id >= 0;
    case Policy::kSubBlock:
      return !bidirectional && spec.shift;
    default:
      return false;
  }
}

std::unique_ptr<Procedure> MakeRankPolicy(const DecodingRule& rule, const ProcedureContext& context, int32_t blocks) {
  RankPolicy::Settings settings;
  settings.rule.sampling = context.sampling;
  settings.rule.raw_confidence = rule.raw_confidence;
  settings.rule.policy = rule.policy;
  settings.rule.remasking = rule.remasking;
  settings.rule.measure = rule.measure;
  settings.rule.threshold = rule.threshold;
  settings.rule.low_threshold = rule.low_threshold;
  settings.rule.factor = rule.factor;
  settings.rule.entropy_bound = rule.entropy_bound;
  settings.rule.masks = rule.block_length;
  settings.rule.steps = rule.steps;
  if (context.grid == BlockGrid::kAfterPrompt) settings.blocks = blocks;
  if (rule.distrust_eos) settings.distrusted = rule.eos_ids;
  return std::make_unique<RankPolicy>(std::move(settings));
}

std::unique_ptr<Procedure> MakeTimeGrid(const DecodingRule& rule, const ProcedureContext& context, int32_t blocks) {
  TimeGrid::Settings settings;
  settings.policy = rule.policy;
  settings.sampling = context.sampling;
  settings.steps = rule.steps;
  settings.blocks = blocks;
  settings.threshold = rule.threshold;
  settings.confidence_temperature = rule.confidence_temperature;
  return std::make_unique<TimeGrid>(settings);
}

std::unique_ptr<Procedure> MakeCredit(const DecodingRule& rule, const ProcedureContext& context) {
  return std::make_unique<Credit>(Credit::Settings{.threshold = rule.threshold,
                                                   .alpha = rule.credit_alpha,
                                                   .gamma = rule.credit_gamma,
                                                   .beta = rule.credit_beta,
                                                   .sampling = context.sampling});
}

std::unique_ptr<Procedure> MakeTokenEdit(const DecodingRule& rule) {
  TokenEdit::Settings settings;
  settings.threshold = rule.threshold;
  settings.edit_threshold = rule.edit ? std::optional<float>(rule.edit_threshold) : std::nullopt;
  settings.post_steps_max = rule.post_steps_max;
  settings.commits_min = rule.commits_min;
  return std::make_unique<TokenEdit>(settings);
}

std::unique_ptr<Procedure> MakeInsertDelete(const DecodingRule& rule) {
  InsertDelete::Settings settings;
  settings.threshold = rule.threshold;
  settings.edit_threshold = rule.edit ? std::optional<float>(rule.edit_threshold) : std::nullopt;
  settings.post_steps_max = rule.post_steps_max;
  settings.delete_id = rule.delete_id;
  settings.insert_id = rule.insert_id;
  return std::make_unique<InsertDelete>(settings);
}

std::unique_ptr<Procedure> MakeRemdm(const DecodingRule& rule, const ProcedureContext& context, int32_t blocks) {
  Remdm::Settings settings;
  switch (rule.remasking_schedule) {
    case RemaskingSchedule::kCap:
      settings.schedule = Remdm::Schedule::kCap;
      break;
    case RemaskingSchedule::kRescale:
      settings.schedule = Remdm::Schedule::kRescale;
      break;
    case RemaskingSchedule::kConfidence:
      settings.schedule = Remdm::Schedule::kConfidence;
      break;
    case RemaskingSchedule::kLoop:
      settings.schedule = Remdm::Schedule::kLoop;
      break;
  }
  settings.eta = rule.remasking_eta;
  settings.on = rule.remasking_on;
  settings.off = rule.remasking_off;
  settings.alpha = rule.remasking_alpha;
  settings.steps = {.steps = rule.steps, .blocks = blocks};
  settings.sampling = context.sampling;
  return std::make_unique<Remdm>(settings);
}

std::unique_ptr<Procedure> MakeRenoise(const DecodingRule& rule, const ProcedureContext& context) {
  Renoise::Settings settings;
  settings.steps = rule.steps;
  settings.entropy_bound = rule.entropy_bound;
  settings.temperature_min = rule.temperature_min;
  settings.temperature_max = rule.temperature_max;
  settings.stability_steps = rule.stability_steps;
  settings.confidence_threshold = rule.threshold;
  settings.vocabulary = rule.vocabulary;
  settings.sampling = context.sampling;
  settings.draft = context.draft;
  return std::make_unique<Renoise>(std::move(settings));
}

std::unique_ptr<Procedure> MakeVariableLength(const DecodingRule& rule, const ProcedureContext& context) {
  VariableLength::Settings settings;
  settings.threshold = rule.threshold;
  settings.low_threshold = rule.low_threshold;
  settings.expansion = rule.expansion;
  settings.eos_threshold = rule.eos_threshold;
  settings.expand_eos_threshold = rule.expand_eos_threshold;
  settings.eos_window = rule.eos_window;
  settings.eos_id = rule.eos_id;
  settings.length_max = context.answer_length_max;
  settings.sampled = context.sampling.temperature > 0.0f;
  return std::make_unique<VariableLength>(settings);
}

}  // namespace

std::vector<Policy> AllowedPolicies(const ModelSpec& spec) {
  std::vector<Policy> policies;
  for (int32_t i = 0; i <= static_cast<int32_t>(Policy::kAutoregressive); ++i) {
    if (static_cast<Policy>(i) != Policy::kHost && Allows(spec, static_cast<Policy>(i)))
      policies.push_back(static_cast<Policy>(i));
  }
  return policies;
}

std::unique_ptr<Procedure> MakeProcedure(const DecodingRule& rule, const ProcedureContext& context) {
  const int32_t blocks = (context.answer_length + rule.block_length - 1) / rule.block_length;
  if (IsRankPolicy(rule.policy)) return MakeRankPolicy(rule, context, blocks);
  if (IsTimeGridPolicy(rule.policy)) return MakeTimeGrid(rule, context, blocks);
  switch (rule.policy) {
    case Policy::kCredit:
      return MakeCredit(rule, context);
    case Policy::kKlass: {
      const BlockSchedule schedule = {.steps = rule.steps,
                                      .blocks = context.grid == BlockGrid::kAfterPrompt ? blocks : 0};
      return std::make_unique<Klass>(
          Klass::Settings{.threshold = rule.threshold, .kl_threshold = rule.kl_threshold, .schedule = schedule});
    }
    case Policy::kTokenEdit:
      return MakeTokenEdit(rule);
    case Policy::kInsertDelete:
      return MakeInsertDelete(rule);
    case Policy::kWino:
      return std::make_unique<Wino>(
          Wino::Settings{.threshold = rule.threshold, .verify_threshold = rule.verify_threshold});
    case Policy::kRemdm:
      return MakeRemdm(rule, context, blocks);
    case Policy::kVariableLength:
      return MakeVariableLength(rule, context);
    case Policy::kMultiBlock:
      return std::make_unique<MultiBlock>(
          MultiBlock::Settings{.threshold = rule.threshold,
                               .block_add_threshold = rule.block_add_threshold,
                               .block_length = rule.block_length,
                               .eos_ids = rule.finish_blocks ? std::vector<TokenId>() : rule.eos_ids});
    case Policy::kSubBlock:
      return std::make_unique<SubBlock>(
          SubBlock::Settings{.length = rule.sub_block_length, .threshold = rule.threshold});
    case Policy::kRenoise:
      return MakeRenoise(rule, context);
    case Policy::kAutoregressive:
      return std::make_unique<Autoregressive>();
    default:
      CHECK(false);
      return nullptr;
  }
}

}  // namespace quicksilver
