// SPDX-License-Identifier: Apache-2.0
// Launching a kernel, and the properties of the device that decide its grid.
#pragma once

#include "platform.cuh"

// 1: a kernel launched with `dependent` may start before the kernel ahead of it is over. 0: it never does.
#ifndef MICROSPEC_DEPENDENT_LAUNCH
#define MICROSPEC_DEPENDENT_LAUNCH 1
#endif

namespace microspec {

// A cudaError_t; 0 is success. An int, so that callers need no CUDA header.
using Error = int;
constexpr Error kInvalidValue = 1;

struct Device {
  int arch;          // compute capability times 100: 900
  int sms;           // streaming multiprocessors
  int block_shared;  // bytes of shared memory a block may ask for
  int sm_shared;     // bytes of shared memory on an SM
};

// Sets `device` to the calling thread's current device. Queries each device once.
Error current_device(Device& device);

struct Launch {
  unsigned blocks;
  unsigned threads;
  size_t shared_bytes;
  void* stream;
  // From sm_90 on, the kernel may start before the kernel ahead of it in the stream is over. Every thread
  // must call ptx::wait_for_earlier_kernels, and must do so before it accesses memory that an unfinished
  // kernel may read or write.
  bool dependent = false;
};

}  // namespace microspec

#ifdef MICROSPEC_EMULATION
#include "emulation/launch.h"
#else

namespace microspec {

template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), const Launch& how, Arguments... arguments) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (how.shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(how.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  Device device;
  if (const Error error = current_device(device)) return error;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(how.blocks);
  config.blockDim = dim3(how.threads);
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = static_cast<cudaStream_t>(how.stream);
  config.attrs = &attribute;
  config.numAttrs = MICROSPEC_DEPENDENT_LAUNCH && how.dependent && device.arch >= 900 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace microspec

#endif  // MICROSPEC_EMULATION
