// SPDX-License-Identifier: Apache-2.0
// Argument checks. Every message names the op, the argument, what was expected and what came:
//   "ValueError: microspec::sparse_head: k: expected 1 <= k <= 128, got 200"
// The stable ABI can only raise RuntimeError; the leading word tells the Python layer
// (microspec_kernels/ops.py) which of Python's own types to raise instead.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/dtype.h"

namespace microspec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A dtype's PyTorch name ("bfloat16"), as users know it.
std::string dtype_name(ScalarType type);
// "[3072, 4096]"
std::string shape_of(const Tensor& tensor);

// A tensor by its name; null if it is optional and was not given.
struct Argument {
  const Tensor* tensor;
  const char* name;
};

// Tells autograd that an op writes into the tensors: a graph that had saved one of them will refuse to use
// it. Call it before the first write: PyTorch refuses here to write into some tensors.
void note_writes(std::initializer_list<Argument> written);

// The checks of one op on one device, so that both are said once.
class Checker {
 public:
  Checker(const char* op, const Tensor& tensor);

  const char* op() const { return op_; }

  template <class... Got>
  [[noreturn]] void fail(const char* kind, const char* argument, const std::string& expected,
                         const Got&... got) const {
    std::ostringstream message;
    message << kind << ": microspec::" << op_ << ": " << argument << ": expected " << expected << ", got ";
    (message << ... << got);
    throw std::runtime_error(message.str());
  }

  template <class... Got>
  void value(bool ok, const char* argument, const std::string& expected, const Got&... got) const {
    if (!ok) fail("ValueError", argument, expected, got...);
  }
  template <class... Got>
  void type(bool ok, const char* argument, const std::string& expected, const Got&... got) const {
    if (!ok) fail("TypeError", argument, expected, got...);
  }

  void dtype(const Tensor& tensor, const char* argument, ScalarType expected) const;
  // int32 or int64; true if int64
  bool integer(const Tensor& tensor, const char* argument) const;
  void shape(const Tensor& tensor, const char* argument, std::initializer_list<int64_t> expected) const;
  // Every id in [0, bound) or -1; else an IndexError that names the first bad one.
  void ids(const int32_t* ids, int64_t count, int64_t bound, const char* argument) const;
  // active_ids, as every op takes them: [K] or [G, K], at least one group.
  void slots(const Tensor& active_ids) const;
  void contiguous(const Tensor& tensor, const char* argument) const;
  void on_device(const Tensor& tensor, const char* argument) const;
  // No memory that the op writes is also another argument's.
  void disjoint(std::initializer_list<Argument> written, std::initializer_list<Argument> read) const;
  // Rows may lie apart or repeat; the elements of a row may not.
  void unit_inner_stride(const Tensor& tensor, const char* argument) const;

  // bf16, fp16 or fp32
  DType float_dtype(const Tensor& tensor, const char* argument) const;
  // reference's dtype, or fp8-e4m3 or int8
  DType row_dtype(const Tensor& tensor, const char* argument, ScalarType reference) const;
  // A scale is there exactly if the rows are quantised; fp32, contiguous, of the given shape.
  const float* row_scale(const std::optional<Tensor>& scale, const char* argument, DType rows,
                         std::initializer_list<int64_t> shape) const;

 private:
  const char* op_;
  int32_t device_type_;
  int32_t device_index_;
};

}  // namespace microspec
