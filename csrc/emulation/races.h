// SPDX-License-Identifier: Apache-2.0
// Tells ThreadSanitizer which memory accesses CUDA's memory model orders. Without ThreadSanitizer, all
// functions do nothing.
//
// Emulated threads are fibers, which ThreadSanitizer takes for unordered threads. These order them: barriers
// of a block and __syncwarp (but not shuffles and votes), the end of a kernel, completed copies, and a fence
// before and one after two atomics on the same address. An atomic alone orders nothing. Only code that is not
// instrumented may call these functions.
#pragma once

namespace microspec::emulation {

struct Thread;

namespace races {

#ifdef MICROSPEC_TSAN

constexpr bool kDetected = true;

// Makes a line of execution, ordered after everything that its maker has done. A context that has ended is
// reused, but only from the next launch on: within its launch, its new use would be ordered after its first.
void* make_context(const char* name);
void end_context(void* context);
// Destroys the context of a thread that was left in the middle of its work.
void abandon_context(void* context);
// The host calls this when all of a launch's threads are over.
void end_launch();
void* this_context();
void switch_to(void* context);

void release(const void* key);
void acquire(const void* key);

// Runs f as another line of execution.
template <class F>
void as(void* context, F&& f) {
  void* self = this_context();
  switch_to(context);
  f();
  switch_to(self);
}

void fence(Thread& thread);
void after_atomic(Thread& thread, const void* address);
void before_atomic(Thread& thread, const void* address);
void start(Thread& thread, const char* name);
void finish(Thread& thread);

// In its scope, accesses by library functions (an allocator's, memcpy's) count as the emulation's own.
class Unseen {
 public:
  Unseen();
  ~Unseen();
};

#else

constexpr bool kDetected = false;

inline void* make_context(const char*) { return nullptr; }
inline void end_context(void*) {}
inline void abandon_context(void*) {}
inline void end_launch() {}
inline void* this_context() { return nullptr; }
inline void switch_to(void*) {}
inline void release(const void*) {}
inline void acquire(const void*) {}
template <class F>
void as(void*, F&& f) {
  f();
}
inline void fence(Thread&) {}
inline void after_atomic(Thread&, const void*) {}
inline void before_atomic(Thread&, const void*) {}
inline void start(Thread&, const char*) {}
inline void finish(Thread&) {}
struct Unseen {
  Unseen() {}
};

#endif

}  // namespace races
}  // namespace microspec::emulation
