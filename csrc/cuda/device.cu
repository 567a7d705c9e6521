// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <mutex>
#include <utility>
#include <vector>

#include "launch.cuh"
#include "runtime.h"

namespace microspec {

namespace {

// Queries the properties of device `index`.
Error ask(int index, Device& device) {
  int major = 0, minor = 0;
  const std::pair<cudaDeviceAttr, int*> wanted[] = {
      {cudaDevAttrComputeCapabilityMajor, &major},
      {cudaDevAttrComputeCapabilityMinor, &minor},
      {cudaDevAttrMultiProcessorCount, &device.sms},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &device.block_shared},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &device.sm_shared},
  };
  for (const auto& [attribute, value] : wanted) {
    if (const cudaError_t error = cudaDeviceGetAttribute(value, attribute, index)) return error;
  }
  device.arch = major * 100 + minor * 10;
  return cudaSuccess;
}

}  // namespace

Error current_device(Device& device) {
  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index)) return error;
  static std::mutex mutex;
  static std::vector<Device> known;  // arch 0: not queried yet
  const std::lock_guard lock(mutex);
  if (known.size() <= static_cast<size_t>(index)) known.resize(index + 1);
  if (known[index].arch == 0) {
    if (const Error error = ask(index, known[index])) return error;
  }
  device = known[index];
  return cudaSuccess;
}

extern "C" __attribute__((visibility("default"))) const char* microspec_cuda_architectures() {
  return MICROSPEC_CUDA_ARCHITECTURES;
}

const char* cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int cuda_arch(int* arch) {
  Device device;
  const Error error = current_device(device);
  *arch = device.arch;
  return error;
}

int cuda_pinned_pointer(const void* host, const void** device) {
  cudaPointerAttributes attributes;
  if (const cudaError_t error = cudaPointerGetAttributes(&attributes, host)) return error;
  *device = attributes.type == cudaMemoryTypeHost ? attributes.devicePointer : nullptr;
  return cudaSuccess;
}

int cuda_copy_to_host(void* host, const void* device, size_t bytes, void* stream, bool* copied) {
  const auto queue = static_cast<cudaStream_t>(stream);
  cudaStreamCaptureStatus capture;
  if (const cudaError_t error = cudaStreamIsCapturing(queue, &capture)) return error;
  *copied = capture == cudaStreamCaptureStatusNone;
  if (!*copied) return cudaSuccess;
  if (const cudaError_t error = cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, queue))
    return error;
  return cudaStreamSynchronize(queue);
}

}  // namespace microspec
