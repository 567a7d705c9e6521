// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "error_text.h"
#include "launch.cuh"
#include "runtime.h"

namespace microspec {

extern "C" __attribute__((visibility("default"))) const char* microspec_cuda_architectures() {
  return MICROSPEC_CUDA_ARCHITECTURES;
}

std::string cuda_error_text(int error) {
  // Where the runtime cannot start, these leave the zeros.
  int driver = 0, device = 0, major = 0, minor = 0;
  cudaDriverGetVersion(&driver);
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return cudaGetErrorString(static_cast<cudaError_t>(error)) +
         error_advice(error, {CUDART_VERSION, driver, major * 10 + minor, MICROSPEC_CUDA_ARCHITECTURES});
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
