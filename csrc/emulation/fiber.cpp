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

// Virtual memory; a stack uses a few KB of it. AddressSanitizer needs larger frames.
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
  // The lowest page stays inaccessible, so that an overflow faults at once.
  void* pages = mmap(nullptr, page_bytes() + kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  mprotect(pages, page_bytes(), PROT_NONE);
  return static_cast<unsigned char*>(pages) + page_bytes();
}

void unmap_stack(unsigned char* stack) { munmap(stack - page_bytes(), page_bytes() + kStackBytes); }

// Stacks of ended fibers, for reuse. Under ThreadSanitizer each stack is new, or it would report a race
// between a stack's next fiber and its last one.
std::vector<unsigned char*>& free_stacks() {
  static std::vector<unsigned char*> stacks;
  return stacks;
}

unsigned char* take_stack() {
  if (free_stacks().empty()) return map_stack();
  unsigned char* stack = free_stacks().back();
  free_stacks().pop_back();
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, kStackBytes);  // frames of a failed launch
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

// Saves the registers that a function must preserve on the old stack, and restores them from the new one.
// (The floating-point modes belong to these too, but kernels do not change them.)
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
  // Vary the start within a page, or the stacks would compete for the same cache lines.
  static unsigned started = 0;
  const unsigned line = started++ * 5 % 64;
  // Lay the stack out as a call would: a return address, which is never used, below a multiple of 16.
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
Fiber* left = nullptr;  // the fiber that the last switch left
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
  // The main fiber's stack is the process's own, and becomes known when the fiber is left for the first time.
  __sanitizer_finish_switch_fiber(self.fake_stack_, &left->bottom_, &left->size_);
#endif
}

}  // namespace microspec::emulation
