#include "tests/support/cuda_twin/fault_handler.h"

#include <csignal>
#include <memory>
#include <mutex>

#include "tests/support/cuda_twin/engine.h"

namespace quicksilver::cuda_twin {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

void ReportFaultsOfKernels() {}

#else

namespace {

constexpr size_t kStackBytes = 256 * 1024;

struct sigaction previous_action;

void OnFault(int, siginfo_t* info, void*) {
  sigaction(SIGSEGV, &previous_action, nullptr);
  if (current_thread == nullptr) return;  // The instruction faults again, and now as ever.
  current_engine->Fail("segmentation fault: out of bounds, or the thread's stack (64 KiB) is full", info->si_addr);
}

// Faults of a full stack need another one to be handled on.
class SignalStack {
 public:
  SignalStack() : memory_(new char[kStackBytes]) {
    stack_t stack = {};
    stack.ss_sp = memory_.get();
    stack.ss_size = kStackBytes;
    sigaltstack(&stack, nullptr);
  }
  ~SignalStack() {
    stack_t stack = {};
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, nullptr);
  }

 private:
  std::unique_ptr<char[]> memory_;
};

}  // namespace

void ReportFaultsOfKernels() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action = {};
    action.sa_sigaction = OnFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_action);
  });
  thread_local const SignalStack stack;
  (void)stack;
}

#endif

}  // namespace quicksilver::cuda_twin
