#pragma once

#include <string>
#include <vector>

#include "tests/support/cuda_twin/engine.h"

namespace quicksilver::cuda_twin {

/// Prints what went wrong and where every thread of `blocks` stands, then aborts. `thread` ran; may be null.
[[noreturn]] void ReportKernelError(const KernelCall& call, const std::vector<const Block*>& blocks,
                                    const ThreadState* thread, const char* what, const void* pointer);

/// The name of a function of this program, from its symbol table, demangled; its address when it has none.
std::string FunctionName(const void* function);

}  // namespace quicksilver::cuda_twin
