// SPDX-License-Identifier: Apache-2.0
// Launching a kernel, and the properties of the device and of the loaded kernel that decide how.
//
// A GPU may run code that was compiled for an older one: that one's cubin, or PTX that the driver compiled.
// Such code lacks what its own architecture lacks. So the loaded kernel's attributes decide what a launch
// may use, and never the GPU's compute capability.
#pragma once

#include "platform.cuh"
#include "runtime.h"

#ifdef MICROSPEC_EMULATION
#include "emulation/cuda_runtime.h"
#endif

namespace microspec {

// A cudaError_t; 0 is success. An int, so that callers need no CUDA header.
using Error = int;
constexpr Error kInvalidValue = 1;
constexpr Error kNotSupported = 801;

struct Device {
  int sms;           // streaming multiprocessors
  int block_shared;  // bytes of shared memory a block may have, static and dynamic
  int sm_shared;     // bytes of shared memory on an SM
};

// Sets `device` to the calling thread's current device. Queries each device once.
Error current_device(Device& device);

// A kernel as the current device has loaded it.
struct Loaded {
  int arch;                // what it was compiled for, MICROSPEC_ARCH in its code: 900
  int static_shared;       // bytes of shared memory of its declarations, padding included
  int64_t dynamic_shared;  // the most bytes that a launch may ask for beside them
};

// Queries a kernel's attributes. The emulation needs the kernel's type for that.
using Attributes = cudaError_t (*)(cudaFuncAttributes*, const void* kernel);
Error load(const void* kernel, Attributes attributes, Loaded& loaded);

// Sets `loaded`. The first call for a kernel and device asks the runtime, and allows the kernel all the
// shared memory that the device has: no launch sets that attribute, so none lowers it for another thread's.
template <class... Parameters>
Error load(void (*kernel)(Parameters...), Loaded& loaded) {
  const auto attributes = [](cudaFuncAttributes* result, const void* entry) -> cudaError_t {
    return cudaFuncGetAttributes(result, reinterpret_cast<void (*)(Parameters...)>(const_cast<void*>(entry)));
  };
  return load(reinterpret_cast<const void*>(kernel), attributes, loaded);
}

// Whether MICROSPEC_DEPENDENT_LAUNCH allows dependent launches. Read once.
bool dependent_launch_allowed();

struct Launch {
  unsigned blocks;
  unsigned threads;
  size_t shared_bytes;
  void* stream;
  // If the kernel's code has the wait (compiled for sm_90 and later), it may start before the kernel ahead of
  // it in the stream is over. Every thread must call ptx::wait_for_earlier_kernels, and must do so before it
  // accesses memory that an unfinished kernel may read or write.
  bool dependent = false;
  // The launch fails if the kernel was compiled for an older architecture.
  int least_arch = 0;
};

// A kernel declares its shared memory first, and then calls ptx::wait_for_earlier_kernels.
template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), const Launch& how, Arguments... arguments) {
  Loaded loaded;
  if (const Error error = load(kernel, loaded)) return error;
  if (loaded.arch < how.least_arch) return kNotSupported;
  cudaLaunchAttribute dependent;
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  const bool is_dependent = how.dependent && loaded.arch >= 900 && dependent_launch_allowed();
  const cudaLaunchConfig_t config{dim3(how.blocks), dim3(how.threads),
                                  how.shared_bytes, static_cast<cudaStream_t>(how.stream),
                                  &dependent,       is_dependent ? 1u : 0u};
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace microspec
