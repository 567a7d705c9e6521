// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <vector>

#include "races.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace microspec::emulation {

namespace {

// Virtual; what is touched of it is a few KB. AddressSanitizer needs larger frames.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

unsigned char* map_stack() {
  // The lowest page stays inaccessible, so that an overflow is a fault and not a riddle.
  void* pages = mmap(nullptr, page_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  mprotect(pages, page_bytes(), PROT_NONE);
  return static_cast<unsigned char*>(pages) + page_bytes();
}

void unmap_stack(unsigned char* stack) { munmap(stack - page_bytes(), page_bytes() + kStackBytes); }

// Stacks of fibers that are over. ThreadSanitizer would take the next fiber's use of one for a race
// with the last one's; there each stack is new.
std::vector<unsigned char*>& free_stacks() {
  static std::vector<unsigned char*> stacks;
  return stacks;
}

unsigned char* take_stack() {
  if (free_stacks().empty()) return map_stack();
  unsigned char* stack = free_stacks().back();
  free_stacks().pop_back();
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, kStackBytes);  // frames that a failed launch left
#endif
  return stack;
}

void return_stack(unsigned char* stack) {
  constexpr size_t kMostKept = 4096;
  if (races::kDetected || free_stacks().size() >= kMostKept) {
    unmap_stack(stack);
  } else {
    free_stacks().push_back(stack);
  }
}

}  // namespace

Fiber::~Fiber() {
  if (stack_) return_stack(stack_);
}

#if defined(__x86_64__)

// Saves what a function must preserve on the old stack and takes the same off the new one. (The
// floating-point modes are preserved too, in theory; kernels do not change them.)
extern "C" __attribute__((visibility("hidden"))) void microspec_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl microspec_switch_stack
.hidden microspec_switch_stack
.type microspec_switch_stack, @function
microspec_switch_stack:
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
.size microspec_switch_stack, .-microspec_switch_stack
)");

void Fiber::start(void (*entry)()) {
  stack_ = take_stack();
  bottom_ = stack_;
  size_ = kStackBytes;
  // Not all at the same place in a page: they would compete for the same lines of the cache.
  static unsigned started = 0;
  const unsigned line = started++ * 5 % 64;
  // As a call would leave it: a return address, which nobody uses, below a multiple of 16.
  auto* top = reinterpret_cast<void**>(stack_ + kStackBytes - 64 * line - 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  stack_pointer_ = top;
}

#else

void Fiber::start(void (*entry)()) {
  stack_ = take_stack();
  bottom_ = stack_;
  size_ = kStackBytes;
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

#endif

namespace {
Fiber* left = nullptr;  // whom the last switch left
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
  left = &from;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
#endif
  races::switch_to(to.race_context);
#if defined(__x86_64__)
  microspec_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
  arrived(from);
}

void Fiber::arrived([[maybe_unused]] Fiber& self) {
#ifdef __SANITIZE_ADDRESS__
  // The main fiber's stack is the process's own: learnt when it is left for the first time.
  __sanitizer_finish_switch_fiber(self.fake_stack_, &left->bottom_, &left->size_);
#endif
}

}  // namespace microspec::emulation
