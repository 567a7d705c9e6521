// SPDX-License-Identifier: Apache-2.0
// What every kernel stands on. The same kernel sources are compiled by nvcc for GPUs and by g++ for
// csrc/emulation, which runs them on the host; so they use CUDA's own names where g++ can be given
// them too (threadIdx, __syncthreads, __shfl_xor_sync, atomicMax, …) and the macros below where it
// cannot. Instructions that need PTX are in ptx.cuh, starting a kernel is in launch.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef MICROSPEC_EMULATION
#include "emulation/platform.h"
#else

#include <cuda_runtime.h>

#define MICROSPEC_DEVICE __device__ __forceinline__
// Before a kernel's name: at most `threads` in a block, registers for `blocks` of them on an SM.
#define MICROSPEC_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define MICROSPEC_SHARED(type, name, count) __shared__ type name[count]
// The launch's shared memory, 128-byte aligned; declared once in a kernel.
#define MICROSPEC_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// Compute capability times 100, a constant in device code: `if (MICROSPEC_ARCH >= 900)`. The host
// asks current_device().arch instead.
#ifdef __CUDA_ARCH__
#define MICROSPEC_ARCH __CUDA_ARCH__
#else
#define MICROSPEC_ARCH 0
#endif

#endif  // MICROSPEC_EMULATION

namespace microspec {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

MICROSPEC_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
MICROSPEC_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

template <class T>
constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace microspec
