// SPDX-License-Identifier: Apache-2.0
// DeviceCall is an op's context: its device, made current, its stream, and memory on the device.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"
#include "cuda/runtime.h"

namespace microspec {

constexpr int64_t kMostDims = 3;

// One op's call. On CUDA, its tensors' device is the current one for the object's lifetime.
class DeviceCall {
 public:
  // Uses the device of `tensor`, CPU or CUDA.
  DeviceCall(const Checker& check, const Tensor& tensor, const char* argument);

  bool on_cuda() const { return on_cuda_; }
  // Returns PyTorch's current stream on the device, a cudaStream_t.
  void* stream() const { return stream_; }

  // Returns a contiguous, uninitialised tensor of at most kMostDims dimensions.
  Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const;
  // Returns uninitialised memory for the kernels, which the caller keeps until they are enqueued.
  Tensor workspace(size_t bytes) const;

  // Raises an error for a cudaError_t other than 0.
  void check(int error) const;
  // Requires a CUDA device that converts fp8, if the rows are fp8 and on CUDA.
  void check_rows(DType rows, const char* argument) const;
  // Requires a size that the kernels can count, if the tensors are on CUDA. The text names it: "K".
  void check_size(int64_t size, const char* argument, const char* name, int64_t most = kMostOnCuda) const;
  // Returns the address by which the device reaches a tensor, which may also be in pinned host memory.
  const void* data_of(const Tensor& tensor, const char* argument) const;

 private:
  const Checker& check_;
  bool on_cuda_;
  int32_t index_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

// An int32 or int64 tensor's values, for checks on the host. Reading values from a GPU means waiting for
// them, so they are read only if MICROSPEC_VALIDATE=1 is set, and never during graph capture.
class HostValues {
 public:
  HostValues(const DeviceCall& call, const Tensor& tensor);

  // Whether the values are available for checks.
  bool known() const { return known_; }

  template <class T>
  const T* data() const {
    return static_cast<const T*>(data_);
  }

 private:
  bool known_ = false;
  const void* data_ = nullptr;
  std::vector<char> copy_;
};

}  // namespace microspec
