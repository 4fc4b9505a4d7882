#pragma once

namespace quicksilver::cuda_twin {

/// cudaGraphSetConditional of a kernel. Aborts when no living graph owns `handle`.
void SetGraphCondition(unsigned long long handle, unsigned int value);

}  // namespace quicksilver::cuda_twin
