#pragma once

#include <string>
#include <vector>

namespace quicksilver {

/// `quicksilver inspect DIR`: prints what a checkpoint is, what each rank would hold and move, and the floor of a step.
/// A fault of the checkpoint is one line on stderr and kExitModel. Returns the exit code.
int RunInspect(const std::vector<std::string>& arguments);

}  // namespace quicksilver
