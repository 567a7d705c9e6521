// SPDX-License-Identifier: Apache-2.0
// parallel_for runs on PyTorch's intra-op thread pool, so that an engine's thread settings apply here too.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

namespace microspec {

inline int64_t thread_count() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count;
}

// Runs body(begin, end) over disjoint ranges of at most `grain` that cover [0, count). A thread takes the
// next range when it finishes one, so a slow core does not hold up the others. body must not throw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  const int64_t threads = std::min<int64_t>(thread_count(), (count + grain - 1) / grain);
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;) {
      body(begin, std::min(begin + grain, count));
    }
  };
  if (threads <= 1) return work();  // one range is not worth waking the pool
  const auto trampoline = [](int64_t, int64_t, void* context) {
    (*static_cast<const decltype(work)*>(context))();
  };
  const auto context = const_cast<void*>(static_cast<const void*>(&work));
  if (torch_parallel_for(0, threads, 1, trampoline, context) != 0) {
    throw std::runtime_error("microspec: PyTorch's thread pool failed");
  }
}

}  // namespace microspec
