#pragma once

#include <memory>
#include <tuple>
#include <utility>

#include "tests/support/cuda_twin/execution.h"
#include "tests/support/cuda_twin/include/cuda_runtime_api.h"

namespace quicksilver::cuda_twin {

/// Checks the configuration as the driver does, then runs or captures the launch. `call` says function, invoke and
/// arguments; `owner` keeps the arguments alive.
cudaError_t LaunchKernel(const cudaLaunchConfig_t& config, KernelCall call, std::shared_ptr<const void> owner);

template <typename... Parameters>
cudaError_t LaunchTyped(const cudaLaunchConfig_t& config, void (*kernel)(Parameters...), Parameters... parameters) {
  struct Arguments {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> values;
  };
  auto arguments = std::make_shared<const Arguments>(Arguments{kernel, {parameters...}});
  KernelCall call;
  call.function = reinterpret_cast<const void*>(kernel);
  call.invoke = [](const void* pointer) {
    const Arguments& a = *static_cast<const Arguments*>(pointer);
    std::apply(a.kernel, a.values);
  };
  call.arguments = arguments.get();
  return LaunchKernel(config, call, std::move(arguments));
}

}  // namespace quicksilver::cuda_twin

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return quicksilver::cuda_twin::LaunchTyped<Parameters...>(*config, kernel, std::forward<Arguments>(arguments)...);
}
