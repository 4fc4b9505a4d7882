#pragma once

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstddef>
#include <functional>
#include <memory>

namespace quicksilver::cuda_twin {

/// A stack that code runs on until it switches to another one. Sanitizers are told of the switches.
class Fiber {
 public:
  /// Stands for the stack of an OS thread; to be bound to the running thread before each use.
  Fiber() = default;
  /// A stack with a guard page below. `body` must not return, so this must not be destroyed.
  explicit Fiber(std::function<void()> body);
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void BindToThread();

  /// Goes on with `to`, from `*this`, which must be the running one. Returns when somebody switches back.
  void SwitchTo(Fiber& to);

 private:
  void Arrive();

  std::function<void()> body_;
  boost::context::stack_context stack_;
  boost::context::fiber context_;
  Fiber* came_from_ = nullptr;
  const void* bottom_ = nullptr;  // For AddressSanitizer.
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_fiber_ = nullptr;
};

}  // namespace quicksilver::cuda_twin
