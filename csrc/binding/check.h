// SPDX-License-Identifier: Apache-2.0
// Argument checks. Every message names the op, the argument, the expected value and the actual value:
//   "ValueError: microspec::sparse_head: softcap: expected a finite number >= 0, got -1"
// The stable ABI can only raise RuntimeError. The leading word tells the Python layer
// (microspec_kernels/ops/errors.py) which Python type to raise instead.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/dtype.h"

namespace microspec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Returns a tensor's dtype. Tensor::scalar_type raises an error for float4_e2m1fn_x2 in the ABI of
// torch 2.10.
ScalarType dtype_of(const Tensor& tensor);
// Returns a dtype's PyTorch name ("bfloat16").
std::string dtype_name(ScalarType type);
// Returns a tensor's shape as text: "[3072, 4096]".
std::string shape_of(const Tensor& tensor);

// A tensor and its name. The tensor is null if the argument is optional and was not passed.
struct Argument {
  const Tensor* tensor;
  const char* name;
};
inline Argument optional_argument(const std::optional<Tensor>& tensor, const char* name) {
  return {tensor ? &*tensor : nullptr, name};
}

// The data of a scale argument. At most one pointer is not null.
struct RowScale {
  float* by_row = nullptr;
  void* by_group = nullptr;
};

// Tells autograd that an op writes into the tensors, so that a graph that saved one of them refuses to use
// it. Call it before the first write: PyTorch raises here for tensors that must not be written.
void note_writes(std::initializer_list<Argument> written);

// The checks of one op on one device. Holds both, so that they are given once.
class Checker {
 public:
  Checker(const char* op, const Tensor& tensor);

  const char* op() const { return op_; }

  template <class Expected, class... Got>
  [[noreturn]] void fail(const char* kind, const char* argument, const Expected& expected,
                         const Got&... got) const {
    std::ostringstream message;
    message << kind << ": microspec::" << op_ << ": " << argument << ": expected " << told(expected)
            << ", got ";
    (message << ... << told(got));
    throw std::runtime_error(message.str());
  }

  // Building a message takes longer than most checks, so `expected` and `got` are only told if the check
  // fails: a function is called then, and a tensor stands for its shape.
  template <class Expected, class... Got>
  void value(bool ok, const char* argument, const Expected& expected, const Got&... got) const {
    if (!ok) fail("ValueError", argument, expected, got...);
  }
  template <class Expected, class... Got>
  void type(bool ok, const char* argument, const Expected& expected, const Got&... got) const {
    if (!ok) fail("TypeError", argument, expected, got...);
  }

  void dtype(const Tensor& tensor, const char* argument, ScalarType expected) const;
  // Requires int32 or int64. Returns true for int64.
  bool integer(const Tensor& tensor, const char* argument) const;
  void shape(const Tensor& tensor, const char* argument, std::initializer_list<int64_t> expected) const;
  // Requires every id to be -1 or in [0, bound). Otherwise raises an IndexError that names the first bad id.
  void ids(const int32_t* ids, int64_t count, int64_t bound, const char* argument) const;
  // Requires active_ids to be [K] or [G, K] with at least one group.
  void slots(const Tensor& active_ids) const;
  void contiguous(const Tensor& tensor, const char* argument) const;
  void on_device(const Tensor& tensor, const char* argument) const;
  // Requires that no memory that the op writes belongs to another argument too.
  void disjoint(std::initializer_list<Argument> written, std::initializer_list<Argument> read) const;
  // Requires the elements of a row to be contiguous. Rows may be strided or repeated.
  void unit_inner_stride(const Tensor& tensor, const char* argument) const;

  // Requires bf16, fp16 or fp32.
  DType float_dtype(const Tensor& tensor, const char* argument) const;
  // Requires reference's dtype, fp8-e4m3, int8, uint8 (i4) or, unless rows are quantised to it, e2m1.
  DType row_dtype(const Tensor& tensor, const char* argument, ScalarType reference, bool e2m1) const;
  // Requires D to be a whole number of groups of 4-bit rows.
  void group_dim(DType rows, int64_t dim, const char* argument) const;
  // Requires a scale exactly if rows [shape, dim] have one: contiguous, fp32 [shape] for int8 and fp8, bf16
  // [shape, dim / 32] for i4, e4m3 [shape, dim / 16] for e2m1.
  RowScale row_scale(const std::optional<Tensor>& scale, const char* argument, DType rows,
                     std::initializer_list<int64_t> shape, int64_t dim) const;

 private:
  template <class Told>
  static decltype(auto) told(const Told& value) {
    if constexpr (std::is_invocable_v<const Told&>) {
      return value();
    } else if constexpr (std::is_same_v<Told, Tensor>) {
      return shape_of(value);
    } else {
      return (value);
    }
  }
  void shape(const Tensor& tensor, const char* argument, const int64_t* expected, size_t count) const;

  const char* op_;
  int32_t device_type_;
  int32_t device_index_;
};

}  // namespace microspec
