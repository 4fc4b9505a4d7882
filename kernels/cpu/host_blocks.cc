#include "kernels/cpu/host_blocks.h"

namespace quicksilver {
namespace {

void AdvanceBlock(const BlockStep& step, OpenBlock& block) {
  int32_t above = 0;
  bool finite = true, stop = false;
  for (int32_t i = 0; i < block.live; ++i) {
    finite = ChooseToken(step, block, i).finite && finite;
    above += step.ranking[block.first_row + i] > block.rule.threshold ? 1 : 0;
  }
  if (!finite || IsHosts(block)) {
    step.control->stop = 1;
    return;
  }
  for (int32_t i = 0; i < block.live; ++i) {
    step.selected[block.first_row + i] = SelectRow(step, block, i, above) ? 1 : 0;
  }
  for (int32_t i = 0; i < block.live; ++i) stop = CommitRow(step, block, i) || stop;
  if (KeepLiveRows(step, block) || stop) step.control->stop = 1;
}

}  // namespace

void AdvanceBlocksOnHost(const BlockStep& step) {
  for (int32_t i = 0; i < step.blocks_count; ++i) {
    if (step.blocks[i].rows > 0) AdvanceBlock(step, step.blocks[i]);
  }
  EndStep(step);
  *step.results.published = static_cast<uint32_t>(step.control->step);
}

}  // namespace quicksilver
