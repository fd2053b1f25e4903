// A stack of its own, and a switch to it and back without a system call.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simplear::simt {

class Fiber {
 public:
  Fiber() = default;  // until it is started: the caller's own stack
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls function(), which must never return. What ran on its stack before is forgotten.
  void start(void (*function)());
  // Leaves this fiber, which runs now, for `next`; returns when somebody switches back.
  void switch_to(Fiber& next);

 private:
  static void enter();

  void* stack_ = nullptr;
  void (*function_)() = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  // What the address sanitizer wants to know about a stack.
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace simplear::simt
