// SPDX-License-Identifier: Apache-2.0
#include "device_call.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdlib>
#include <string_view>

namespace microspec {

namespace {

// Returns PyTorch's current stream. Only PyTorch's CUDA builds have the function, in libtorch_cuda.so. This
// library may not be linked to that one, or it would not load without it. A weak reference would stay null,
// because only dependents of libtorch_cuda.so see its symbols. So the function is looked up by name.
void* current_stream(int32_t index) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                   : nullptr;
  }();
  if (!function) throw std::runtime_error("microspec: this PyTorch has CUDA tensors but no libtorch_cuda.so");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(index, &stream));
  return stream;
}

bool validates() {
  static const bool on = [] {
    const char* text = std::getenv("MICROSPEC_VALIDATE");
    return text && std::string_view(text) == "1";
  }();
  return on;
}

}  // namespace

DeviceCall::DeviceCall(const Checker& check, const Tensor& tensor, const char* argument)
    : check_(check), on_cuda_(tensor.is_cuda()), index_(on_cuda_ ? tensor.get_device_index() : 0) {
  if (!on_cuda_) {
    // Only a call that bypasses the dispatcher can reach this with another device.
    check.value(tensor.is_cpu(), argument, "a tensor on cpu or cuda", "one on meta");
    return;
  }
  guard_.emplace(index_);
  stream_ = current_stream(index_);
}

Tensor DeviceCall::empty(std::initializer_list<int64_t> sizes, ScalarType dtype) const {
  // torch::stable::empty would go through the dispatcher once more.
  const auto dims = static_cast<int64_t>(sizes.size());
  int64_t strides[kMostDims] = {};
  int64_t step = 1;
  for (int64_t dim = dims - 1; dim >= 0; --dim) {
    strides[dim] = step;
    step *= std::max<int64_t>(1, sizes.begin()[dim]);
  }
  const int32_t device = on_cuda_ ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes.begin(), strides, static_cast<int32_t>(dtype),
                                                  device, index_, &handle));
  return Tensor(handle);
}

Tensor DeviceCall::workspace(size_t bytes) const {
  return empty({static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

void DeviceCall::check(int error) const {
  if (error == 0) return;
  throw std::runtime_error(std::string("microspec::") + check_.op() + ": CUDA error " +
                           std::to_string(error) + ": " + cuda_error_text(error));
}

void DeviceCall::check_rows(DType rows, const char* argument) const {
  if (!on_cuda_ || rows != DType::f8e4m3) return;
  int arch = 0;
  check(cuda_compiled_arch(&arch));
  if (arch >= kFloat8Arch) return;
  check_.fail("ValueError", argument,
              "4-bit, int8 or unquantised rows, as this GPU's kernels are compiled for sm_" +
                  std::to_string(arch / 10) + " and sm_89 is the first that converts fp8",
              "float8_e4m3fn");
}

void DeviceCall::check_size(int64_t size, const char* argument, const char* name, int64_t most) const {
  if (!on_cuda_ || size <= most) return;
  check_.fail("ValueError", argument, std::string(name) + " <= " + std::to_string(most) + " on CUDA", size);
}

const void* DeviceCall::data_of(const Tensor& tensor, const char* argument) const {
  if (on_cuda_ && tensor.is_cpu()) {
    const void* pointer = nullptr;
    check(cuda_pinned_pointer(tensor.data_ptr(), &pointer));
    if (!pointer && tensor.numel() > 0) {
      check_.fail("ValueError", argument, "a tensor on the slab's device or in pinned host memory",
                  "one on cpu that is not pinned");
    }
    return pointer;
  }
  check_.on_device(tensor, argument);
  return tensor.data_ptr();
}

HostValues::HostValues(const DeviceCall& call, const Tensor& tensor) {
  if (!call.on_cuda()) {
    known_ = true;
    data_ = tensor.data_ptr();
  } else if (validates()) {
    copy_.resize(tensor.numel() * (tensor.scalar_type() == ScalarType::Long ? 8 : 4));
    call.check(cuda_copy_to_host(copy_.data(), tensor.data_ptr(), copy_.size(), call.stream(), &known_));
    data_ = copy_.data();
  }
}

}  // namespace microspec
