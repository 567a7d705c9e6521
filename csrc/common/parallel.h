// PyTorch's intra-op thread pool, so that an engine's thread settings hold here too.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <cstdint>
#include <stdexcept>

namespace microspec {

// Runs body(begin, end) over disjoint ranges that cover [0, count). body must not throw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= grain) {  // not worth waking the pool
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  const auto trampoline = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  const auto context = const_cast<void*>(static_cast<const void*>(&body));
  if (torch_parallel_for(0, count, grain, trampoline, context) != 0) {
    throw std::runtime_error("microspec: PyTorch's thread pool failed");
  }
}

}  // namespace microspec
