// SPDX-License-Identifier: Apache-2.0
// Conversions from numpy arrays to the ops' raw pointers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "common/dtype.h"

namespace microspec::emulation {

namespace py = pybind11;
using Array = py::array;
using OptionalArray = std::optional<py::array>;

// numpy has neither bf16, fp8, int4 nor e2m1: they are passed as uint16, uint8, one void for two int4 and one
// character for two e2m1.
inline DType element_type(const Array& array) {
  const std::string type = array.dtype().kind() + std::to_string(array.itemsize());
  if (type == "f4") return DType::f32;
  if (type == "f2") return DType::f16;
  if (type == "u2") return DType::bf16;
  if (type == "i1") return DType::i8;
  if (type == "u1") return DType::f8e4m3;
  if (type == "V1") return DType::i4;
  if (type == "S1") return DType::f4e2m1;
  throw py::type_error("element_type: expected f4, f2, u2, i1, u1, V1 or S1, got " + type);
}

inline int64_t stride(const Array& array, int dimension) {
  return static_cast<int64_t>(array.strides(dimension)) / static_cast<int64_t>(array.itemsize());
}

template <class T>
T* pointer(Array& array) {
  return static_cast<T*>(array.mutable_data());
}
template <class T>
const T* pointer(const Array& array) {
  return static_cast<const T*>(array.data());
}
template <class T>
const T* pointer(const OptionalArray& array) {
  return array ? static_cast<const T*>(array->data()) : nullptr;
}
inline bool is_long(const OptionalArray& array) { return array && array->itemsize() == 8; }

inline void check(int error, const char* op) {
  if (error) throw std::runtime_error(std::string(op) + ": error " + std::to_string(error));
}

// Uncleared device memory of exactly this size, filled with 0xFF.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : memory_(bytes ? std::aligned_alloc(256, bytes) : nullptr) {
    std::memset(memory_.get(), 0xFF, bytes);
  }
  void* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
};

}  // namespace microspec::emulation
