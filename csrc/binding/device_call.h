// SPDX-License-Identifier: Apache-2.0
// Where an op runs: its device made current, its stream, and memory on it.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"

namespace microspec {

class DeviceCall {
 public:
  // On the device of `tensor`, CPU or CUDA.
  DeviceCall(const Checker& check, const Tensor& tensor, const char* argument);

  bool on_cuda() const { return on_cuda_; }
  // PyTorch's current stream there, a cudaStream_t.
  void* stream() const { return stream_; }

  // Contiguous, uninitialised.
  Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const;
  Tensor workspace(size_t bytes) const;

  // Raises what a cudaError_t says.
  void check(int error) const;
  // Rows in fp8 need a GPU that converts them.
  void check_rows(DType rows, const char* argument) const;
  // Where the device finds a tensor that may also be in pinned host memory.
  const void* data_of(const Tensor& tensor, const char* argument) const;

 private:
  const Checker& check_;
  bool on_cuda_;
  int32_t index_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

// An int32 or int64 tensor's values for checks on the host. Those on a GPU would have to be waited for: they
// are looked at only if MICROSPEC_VALIDATE=1 is set, and never while a graph is captured.
class HostValues {
 public:
  HostValues(const DeviceCall& call, const Tensor& tensor);

  // Whether they are to be looked at.
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
