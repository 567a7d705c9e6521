// SPDX-License-Identifier: Apache-2.0
#include "races.h"

#ifdef MICROSPEC_TSAN

#include <sanitizer/tsan_interface.h>

#include <unordered_set>
#include <vector>

#include "runtime.h"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace microspec::emulation::races {

namespace {

constexpr unsigned kWithoutOrder = 1;  // __tsan_switch_to_fiber_no_sync

// Addresses of atomics that some thread used after a fence.
std::unordered_set<const void*> published;

// ThreadSanitizer allows 8128 contexts in total.
constexpr size_t kMostKept = 4096;

// Contexts that have ended: in this launch, and before it.
std::vector<void*> over, idle;

char* key_of(const void* address) { return static_cast<char*>(const_cast<void*>(address)); }

}  // namespace

void* make_context(const char* name) {
  const Unseen unseen;
  void* context;
  if (idle.empty()) {
    context = __tsan_create_fiber(0);
  } else {
    context = idle.back();
    idle.pop_back();
    const char key = 0;  // on the maker's own stack, so no other order comes with it
    release(&key);
    as(context, [&] { acquire(&key); });
  }
  __tsan_set_fiber_name(context, name);
  return context;
}
void end_context(void* context) {
  if (!context) return;
  const Unseen unseen;
  if (over.size() + idle.size() < kMostKept) {
    over.push_back(context);
  } else {
    abandon_context(context);
  }
}
void abandon_context(void* context) { __tsan_destroy_fiber(context); }
void end_launch() {
  idle.insert(idle.end(), over.begin(), over.end());
  over.clear();
}
void* this_context() { return __tsan_get_current_fiber(); }
void switch_to(void* context) { __tsan_switch_to_fiber(context, kWithoutOrder); }

void release(const void* key) { __tsan_release(key_of(key)); }
void acquire(const void* key) { __tsan_acquire(key_of(key)); }

// Orders accesses before the first fence ahead of accesses after the second fence in this pattern: fence;
// atomic on X   ...   atomic on X; fence. Two helper contexts a thread hold the order. `fenced` has the order
// of the thread's last fence and publishes it at each atomic. `observed` gathers the order that atomics have
// read, and the thread acquires it at its next fence.
void fence(Thread& thread) {
  if (thread.observed) {
    as(thread.observed, [&] { release(&thread.observed); });
    acquire(&thread.observed);
  }
  if (!thread.fenced) thread.fenced = make_context("fence");
  release(&thread.fenced);
  as(thread.fenced, [&] { acquire(&thread.fenced); });
}

void before_atomic(Thread& thread, const void* address) {
  if (!thread.fenced) return;
  Unseen unseen;
  published.insert(address);
  as(thread.fenced, [&] { release(address); });
}

void after_atomic(Thread& thread, const void* address) {
  Unseen unseen;
  if (!published.count(address)) return;
  if (!thread.observed) thread.observed = make_context("observed by atomics");
  as(thread.observed, [&] { acquire(address); });
}

void start(Thread& thread, const char* name) { thread.fiber.race_context = make_context(name); }

void finish(Thread& thread) {
  end_context(thread.fenced);
  end_context(thread.observed);
  thread.fenced = thread.observed = nullptr;
}

Unseen::Unseen() {
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
Unseen::~Unseen() {
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

}  // namespace microspec::emulation::races

#endif  // MICROSPEC_TSAN
