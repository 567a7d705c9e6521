// SPDX-License-Identifier: Apache-2.0
// CUDA C++'s names for g++: everything that kernels may use besides the ptx functions.
#pragma once

#include <math.h>

#include "atomics.h"
#include "collectives.h"
#include "intrinsics.h"
#include "runtime.h"
#include "warp.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

#define MICROSPEC_DEVICE inline
// The code records the thread bound as one no-operation per warp at the kernel's entry. launch() counts them.
#define MICROSPEC_KERNEL(threads, blocks) \
  __attribute__((patchable_function_entry(((threads) + 31) / 32))) void
// The static variable identifies the declaration: one per instance of a template, as on CUDA.
#define MICROSPEC_SHARED(type, name, count)                                                       \
  static const char name##_declaration = 0;                                                       \
  auto& name = *static_cast<type(*)[count]>(::microspec::emulation::current->block->shared.fixed( \
      &name##_declaration, sizeof(type) * (count), alignof(type), std::source_location::current()))
#define MICROSPEC_DYNAMIC_SHARED(name) \
  unsigned char* const name = ::microspec::emulation::current->block->shared.dynamic()

// The architecture that the kernels count as compiled for. It is not a constant, so kernels use it in `if`,
// not in `#if`.
#define MICROSPEC_ARCH (::microspec::emulation::settings.arch)

#define threadIdx (::microspec::emulation::thread_index())
#define blockIdx (::microspec::emulation::block_index())
#define blockDim (::microspec::emulation::block_dimensions())
#define gridDim (::microspec::emulation::grid_dimensions())

namespace microspec::emulation {

inline const uint3& thread_index() { return current->index; }
inline const uint3& block_index() { return current->block->index; }
inline const dim3& block_dimensions() { return block_dim; }
inline const dim3& grid_dimensions() { return grid_dim; }

}  // namespace microspec::emulation

inline void __syncthreads(MICROSPEC_SITE) {
  using namespace microspec::emulation;
  block_barrier("__syncthreads", BarrierResult::none, 0, site);
}
inline int __syncthreads_count(int predicate, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return block_barrier("__syncthreads_count", BarrierResult::count, predicate, site);
}
inline int __syncthreads_and(int predicate, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return block_barrier("__syncthreads_and", BarrierResult::all, predicate, site);
}
inline int __syncthreads_or(int predicate, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return block_barrier("__syncthreads_or", BarrierResult::any, predicate, site);
}
