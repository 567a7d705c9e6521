// SPDX-License-Identifier: Apache-2.0
// A line of execution with a stack of its own, switched to by hand: one per emulated thread.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace microspec::emulation {

class Fiber {
 public:
  Fiber() = default;  // the one that is running already
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Gives it a stack; the first switch to it calls `entry`, which must not return.
  void start(void (*entry)());
  // Leaves `from`, which is running, for `to`. Returns when something switches to `from` again.
  static void switch_to(Fiber& from, Fiber& to);
  // To be called first by `entry`.
  static void arrived(Fiber& self);

  // ThreadSanitizer's name for this line of execution.
  void* race_context = nullptr;

 private:
  unsigned char* stack_ = nullptr;  // lowest byte of what may be used
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  const void* bottom_ = nullptr;  // as AddressSanitizer knows the stack
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace microspec::emulation
