#include "simt/fiber.h"

#include <sys/mman.h>

#include "core/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// Saves what a call preserves on the old stack, takes it from the new one, and returns there.
extern "C" void simplear_switch_stack(void** old_stack_pointer, void* new_stack_pointer);
asm(R"(
.text
.type simplear_switch_stack, @function
simplear_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simplear_switch_stack, . - simplear_switch_stack
)");
#endif

namespace simplear::simt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // only what is touched is real

// Those of the switch that is under way.
Fiber* leaving = nullptr;
Fiber* entering = nullptr;

}  // namespace

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_, kStackBytes);
}

void Fiber::start(void (*function)()) {
  if (stack_ == nullptr) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(memory != MAP_FAILED, ErrorKind::kCapacity, "no memory for the stack of a simulated thread");
    stack_ = memory;
  }
  function_ = function;
  bottom_ = stack_;
  size_ = kStackBytes;
  fake_stack_ = nullptr;
#if defined(__x86_64__)
  // As if enter() had been called and then been left: a return address that nobody uses, where to go, six registers.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + kStackBytes);
  top[-1] = nullptr;
  top[-2] = reinterpret_cast<void*>(&Fiber::enter);
  stack_pointer_ = top - 8;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  makecontext(&context_, &Fiber::enter, 0);
#endif
}

void Fiber::switch_to(Fiber& next) {
  leaving = this;
  entering = &next;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, next.bottom_, next.size_);
#endif
#if defined(__x86_64__)
  simplear_switch_stack(&stack_pointer_, next.stack_pointer_);
#else
  swapcontext(&context_, &next.context_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &leaving->bottom_, &leaving->size_);
#endif
}

void Fiber::enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &leaving->bottom_, &leaving->size_);
#endif
  entering->function_();
}

}  // namespace simplear::simt
