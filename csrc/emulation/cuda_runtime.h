// SPDX-License-Identifier: Apache-2.0
// The part of CUDA's runtime that cuda/launch.cuh and launch.cu call, for the emulated device. It refuses
// what a GPU refuses, and records the calls. A launch is over when cudaLaunchKernelEx returns. A bug in a
// kernel is a Failure.
#pragma once

#include <map>
#include <type_traits>
#include <vector>

#include "runtime.h"

using cudaError_t = int;
using cudaStream_t = void*;

constexpr cudaError_t cudaSuccess = 0;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };

struct cudaFuncAttributes {
  size_t sharedSizeBytes;
  int maxDynamicSharedSizeBytes;
  int ptxVersion;
};

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};

// The first two members have names of kernels' variables on CUDA, so hosts initialise by position.
struct cudaLaunchConfig_t {
  dim3 grid, block;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);

namespace microspec::emulation {

// A call of the runtime that changes or launches a kernel.
struct RuntimeCall {
  const char* name;
  const void* kernel;
  int device;
  size_t shared_bytes;  // dynamic
  bool dependent;
};
// Returns the calls since the last time.
std::vector<RuntimeCall> take_runtime_calls();
// Returns the bytes of static shared memory of each kernel that the runtime has been asked about.
std::map<const void*, size_t> known_kernels();
// Returns the number of threads that wait in cudaLaunchKernelEx for others (Settings::launches_meet).
int waiting_launches();

// Lays out the kernel's static shared memory as ptxas does. `probe` starts one thread of it, which ends at
// ptx::wait_for_earlier_kernels: so kernels declare their shared memory first and then wait.
cudaError_t attributes_of(const void* kernel, const Job& probe, cudaFuncAttributes* attributes);
// Checks and records a launch, and runs it.
cudaError_t run_checked(const void* kernel, const cudaLaunchConfig_t& config, void (*invoke)(const void*),
                        const void* arguments);

}  // namespace microspec::emulation

template <class... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Parameters...)) {
  // Zeroes are arguments of a call without rows.
  const auto call = [&] { kernel(std::decay_t<Parameters>{}...); };
  const auto invoke = [](const void* made) { (*static_cast<decltype(&call)>(made))(); };
  return microspec::emulation::attributes_of(reinterpret_cast<const void*>(kernel),
                                             {invoke, &call, 1, 1, 0, false, true}, attributes);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const auto call = [&] { kernel(static_cast<Parameters>(arguments)...); };
  const auto invoke = [](const void* made) { (*static_cast<decltype(&call)>(made))(); };
  return microspec::emulation::run_checked(reinterpret_cast<const void*>(kernel), *config, invoke, &call);
}
