#pragma once

#include "cuda_runtime_api.h"
#include "tests/support/cuda_twin/device_functions.h"
#include "tests/support/cuda_twin/launch.h"
