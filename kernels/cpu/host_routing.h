#pragma once

#include <cstdint>

#include "kernels/ops.h"

namespace quicksilver {

/// Ops::Route in host memory.
void RouteOnHost(const StepLayout& layout, ConstMatrix logits, const RoutingRule& rule, DType activation,
                 int32_t* experts, float* weights);

}  // namespace quicksilver
