// SPDX-License-Identifier: Apache-2.0
// The base of every kernel. nvcc compiles the kernel sources for GPUs, and g++ compiles the same sources for
// csrc/emulation, which runs them on the host. So kernels use CUDA's own names where g++ can have them too
// (threadIdx, __syncthreads, __shfl_xor_sync, atomicMax, …), and the macros below where it cannot. ptx.cuh
// has the instructions that need PTX. launch.cuh starts kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef MICROSPEC_EMULATION
#include "emulation/platform.h"
#else

#include <cuda_runtime.h>

#define MICROSPEC_DEVICE __device__ __forceinline__
// Stands before a kernel's name: a block has at most `threads` threads, and the registers must suffice for
// `blocks` blocks on an SM.
#define MICROSPEC_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define MICROSPEC_SHARED(type, name, count) __shared__ type name[count]
// Declares the launch's dynamic shared memory, 128-byte aligned. Use it once in a kernel.
#define MICROSPEC_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// The compute capability, times 100, that device code is compiled for, a constant there: `if (MICROSPEC_ARCH
// >= 900)`. Host code uses Loaded::arch instead.
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
