// SPDX-License-Identifier: Apache-2.0
// Fiber is a line of execution with its own stack, switched to explicitly. Each emulated thread has one.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace microspec::emulation {

class Fiber {
 public:
  Fiber() = default;  // the fiber that is already running
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Gives the fiber a stack. The first switch to it calls `entry`, which must not return.
  void start(void (*entry)());
  // Switches from the running fiber `from` to `to`. Returns when something switches back to `from`.
  static void switch_to(Fiber& from, Fiber& to);
  // `entry` must call this first.
  static void arrived(Fiber& self);

  // ThreadSanitizer's handle of this line of execution.
  void* race_context = nullptr;

 private:
  unsigned char* stack_ = nullptr;  // lowest usable byte
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  const void* bottom_ = nullptr;  // the stack, as AddressSanitizer knows it
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace microspec::emulation
