#include "tests/support/cuda_twin/fiber.h"

#include <cstdlib>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace quicksilver::cuda_twin {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 * 1024;  // Red zones around every local variable.
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

}  // namespace

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)) {
  boost::context::protected_fixedsize_stack allocator(kStackBytes);
  stack_ = allocator.allocate();
  size_ = stack_.size;
  bottom_ = static_cast<char*>(stack_.sp) - stack_.size;
#if defined(__SANITIZE_THREAD__)
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

void Fiber::BindToThread() {
#if defined(__SANITIZE_THREAD__)
  tsan_fiber_ = __tsan_get_current_fiber();
#endif
}

void Fiber::Arrive() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &came_from_->bottom_, &came_from_->size_);
#endif
}

void Fiber::SwitchTo(Fiber& to) {
  to.came_from_ = this;
  if (to.body_ && !to.context_) {
    // The first entry: the fiber begins in its body.
    to.context_ = boost::context::fiber(
        std::allocator_arg, boost::context::preallocated(to.stack_.sp, to.stack_.size, to.stack_),
        boost::context::protected_fixedsize_stack(kStackBytes), [&to](boost::context::fiber&& caller) {
          to.came_from_->context_ = std::move(caller);
          to.Arrive();
          to.body_();
          std::abort();
          return boost::context::fiber();
        });
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, to.bottom_, to.size_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan_fiber_, 0);
#endif
  boost::context::fiber caller = std::move(to.context_).resume();
  came_from_->context_ = std::move(caller);
  Arrive();
}

}  // namespace quicksilver::cuda_twin
