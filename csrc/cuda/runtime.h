// SPDX-License-Identifier: Apache-2.0
// What the checks in C++ ask of the CUDA runtime, without its headers. Functions that return an int
// return a cudaError_t, 0 for success.
#pragma once

#include <cstddef>

namespace microspec {

// What nvcc compiled for, as CMake names it: "80-real;90a-real"; null without nvcc. C linkage, for
// Python to call.
extern "C" const char* microspec_cuda_architectures();

const char* cuda_error_text(int error);

// Compute capability of the current device times 100: 890.
int cuda_arch(int* arch);

// Where the device finds pinned host memory; null for other memory.
int cuda_pinned_pointer(const void* host, const void** device);

// Waits for the stream and copies; leaves it if the stream is being captured.
int cuda_copy_to_host(void* host, const void* device, size_t bytes, void* stream, bool* copied);

}  // namespace microspec
