// SPDX-License-Identifier: Apache-2.0
// The part of the CUDA runtime that the C++ checks need, without its headers. Functions that return an int
// return a cudaError_t, 0 for success.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace microspec {

// The largest size of a dimension on CUDA, where kernels count in ints. It leaves room for a tile's or a
// warp's slots beyond the last.
constexpr int64_t kMostOnCuda = int64_t{1} << 30;

// The first architecture that converts to and from e4m3: code for an older one leaves zeros.
constexpr int kFloat8Arch = 890;

// Returns the architectures that nvcc compiled for, as CMake names them: "80-real;90a-real". Returns null
// without nvcc. C linkage, because Python calls it.
extern "C" const char* microspec_cuda_architectures();

std::string cuda_error_text(int error);

// Sets *arch to the compute capability, times 100, that the kernels on the current device were compiled for:
// 890. The device's own may be higher. A device takes all kernels from code for the same architecture.
int cuda_compiled_arch(int* arch);

// Sets *device to the device address of pinned host memory, or to null for other memory.
int cuda_pinned_pointer(const void* host, const void** device);

// Waits for the stream and copies to the host. If the stream is being captured, does nothing and sets *copied
// to false.
int cuda_copy_to_host(void* host, const void* device, size_t bytes, void* stream, bool* copied);

}  // namespace microspec
