// SPDX-License-Identifier: Apache-2.0
#include "check.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "common/clones.h"

namespace microspec {

namespace {

// Returns sizes as text: "[2, 3]".
std::string shape_text(const int64_t* sizes, size_t count) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < count; ++i) text << (i ? ", " : "") << sizes[i];
  text << "]";
  return text.str();
}

// Whether all ids are in range. Without a branch for each value, the loop vectorises; the caller finds the
// bad one.
MICROSPEC_CLONES bool all_in_range(const int32_t* ids, int64_t count, int32_t largest) {
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= (ids[i] < -1) | (ids[i] > largest);
  return bad == 0;
}

// A device: its type and its index.
struct Place {
  int32_t type;
  int32_t index;
};

// Returns the tensor's device. The CPU has index 0, since its index means nothing.
Place place_of(const Tensor& tensor) {
  int32_t type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return {type, type == aoti_torch_device_type_cpu() ? 0 : tensor.get_device_index()};
}

std::string place_name(const Place& place) {
  if (place.type == aoti_torch_device_type_cpu()) return "cpu";
  if (place.type != aoti_torch_device_type_cuda()) return "meta";
  return "cuda:" + std::to_string(place.index);
}

// A tensor's bytes in memory: [begin, end).
struct Extent {
  uintptr_t begin = 0, end = 0;
};

Extent extent_of(const Argument& argument) {
  if (!argument.tensor || argument.tensor->numel() == 0) return {};
  const Tensor& tensor = *argument.tensor;
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  return {begin, begin + (last + 1) * tensor.element_size()};
}

std::string name_of_4bit(DType rows) {
  return dtype_name(rows == DType::i4 ? ScalarType::Byte : ScalarType::Float4_e2m1fn_x2);
}

}  // namespace

void note_writes(std::initializer_list<Argument> written) {
  for (const Argument& argument : written) {
    if (!argument.tensor) continue;
    // A copy onto itself moves no data, and counts as a write.
    const AtenTensorHandle handle = argument.tensor->get();
    TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(handle, handle, false));
  }
}

Checker::Checker(const char* op, const Tensor& tensor) : op_(op) {
  const Place place = place_of(tensor);
  device_type_ = place.type;
  device_index_ = place.index;
}

ScalarType dtype_of(const Tensor& tensor) {
  int32_t number = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &number));
  // The shim numbers dtypes as the enumeration does, whose order checkpoints depend on.
  constexpr auto kE2m1 = ScalarType::Float4_e2m1fn_x2;
  return number == static_cast<int32_t>(kE2m1) ? kE2m1 : tensor.scalar_type();
}

std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Double: return "float64";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Float8_e4m3fn: return "float8_e4m3fn";
    case ScalarType::Float8_e5m2: return "float8_e5m2";
    case ScalarType::Float4_e2m1fn_x2: return "float4_e2m1fn_x2";
    default: return "dtype number " + std::to_string(static_cast<int>(type));
  }
}

std::string shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return shape_text(sizes.data(), sizes.size());
}

void Checker::dtype(const Tensor& tensor, const char* argument, ScalarType expected) const {
  const auto got = dtype_of(tensor);
  if (got != expected) fail("TypeError", argument, dtype_name(expected), dtype_name(got));
}

bool Checker::integer(const Tensor& tensor, const char* argument) const {
  const auto got = dtype_of(tensor);
  const bool is_long = got == ScalarType::Long;
  if (!is_long && got != ScalarType::Int) {
    fail("TypeError", argument, "int32 or int64", dtype_name(got));
  }
  return is_long;
}

void Checker::shape(const Tensor& tensor, const char* argument,
                    std::initializer_list<int64_t> expected) const {
  shape(tensor, argument, expected.begin(), expected.size());
}

void Checker::shape(const Tensor& tensor, const char* argument, const int64_t* expected, size_t count) const {
  const auto sizes = tensor.sizes();
  bool same = sizes.size() == count;
  for (size_t i = 0; same && i < count; ++i) same = sizes[i] == expected[i];
  if (!same) fail("ValueError", argument, "shape " + shape_text(expected, count), shape_of(tensor));
}

void Checker::ids(const int32_t* ids, int64_t count, int64_t bound, const char* argument) const {
  const int64_t largest = std::min<int64_t>(bound - 1, std::numeric_limits<int32_t>::max());
  if (all_in_range(ids, count, static_cast<int32_t>(largest))) return;
  int64_t first = 0;
  while (ids[first] >= -1 && ids[first] <= largest) ++first;
  fail("IndexError", argument, "ids in [0, " + std::to_string(bound) + ") or -1", ids[first],
       " at flat position ", first);
}

void Checker::slots(const Tensor& active_ids) const {
  const int64_t dims = active_ids.dim();
  if (dims == 1 || (dims == 2 && active_ids.size(0) > 0)) return;
  fail("ValueError", "active_ids", "shape [K] or [G, K], G >= 1", shape_of(active_ids));
}

void Checker::contiguous(const Tensor& tensor, const char* argument) const {
  if (!tensor.is_contiguous()) {
    const auto strides = tensor.strides();
    fail("ValueError", argument, "a contiguous tensor", "strides ",
         shape_text(strides.data(), strides.size()));
  }
}

void Checker::on_device(const Tensor& tensor, const char* argument) const {
  const Place place = place_of(tensor);
  if (place.type == device_type_ && place.index == device_index_) return;
  fail("ValueError", argument, "a tensor on " + place_name({device_type_, device_index_}),
       "one on " + place_name(place));
}

void Checker::disjoint(std::initializer_list<Argument> written, std::initializer_list<Argument> read) const {
  std::vector<Extent> extents;  // once for each argument: every one takes several calls of the ABI
  extents.reserve(written.size() + read.size());
  for (const auto arguments : {written, read}) {
    for (const Argument& argument : arguments) extents.push_back(extent_of(argument));
  }
  const auto argument = [&](size_t i) -> const Argument& {
    return i < written.size() ? written.begin()[i] : read.begin()[i - written.size()];
  };
  for (size_t i = 0; i < written.size(); ++i) {
    for (size_t other = 0; other < extents.size(); ++other) {
      if (other >= i && other < written.size()) continue;  // itself, or a pair that comes later
      if (extents[i].begin < extents[other].end && extents[other].begin < extents[i].end) {
        fail("ValueError", argument(i).name, "memory of its own", "memory shared with ",
             argument(other).name);
      }
    }
  }
}

void Checker::unit_inner_stride(const Tensor& tensor, const char* argument) const {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) {
    fail("ValueError", argument, "stride 1 in the last dimension", "stride ", tensor.stride(last));
  }
}

DType Checker::float_dtype(const Tensor& tensor, const char* argument) const {
  switch (const auto got = dtype_of(tensor)) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: fail("TypeError", argument, "float32, float16 or bfloat16", dtype_name(got));
  }
}

DType Checker::row_dtype(const Tensor& tensor, const char* argument, ScalarType reference, bool e2m1) const {
  const auto got = dtype_of(tensor);
  if (got == ScalarType::Char) return DType::i8;
  if (got == ScalarType::Float8_e4m3fn) return DType::f8e4m3;
  if (got == ScalarType::Byte) return DType::i4;
  if (e2m1 && got == ScalarType::Float4_e2m1fn_x2) return DType::f4e2m1;
  if (got != reference) {
    const char* quantised =
        e2m1 ? ", float8_e4m3fn, int8, uint8 or float4_e2m1fn_x2" : ", float8_e4m3fn, int8 or uint8";
    fail("TypeError", argument, dtype_name(reference) + quantised, dtype_name(got));
  }
  return float_dtype(tensor, argument);
}

void Checker::group_dim(DType rows, int64_t dim, const char* argument) const {
  const int64_t group = scale_group(rows);
  const auto expected = [&] {
    return "D a multiple of " + std::to_string(group) + " for " + name_of_4bit(rows) + " rows";
  };
  value(dim % group == 0, argument, expected, dim);
}

RowScale Checker::row_scale(const std::optional<Tensor>& scale, const char* argument, DType rows,
                            std::initializer_list<int64_t> expected, int64_t dim) const {
  const bool by_group = is_4bit(rows);
  if (!is_quantised(rows)) {
    value(!scale, argument, "None for rows that are not int8, float8_e4m3fn, uint8 or float4_e2m1fn_x2",
          "a tensor");
    return {};
  }
  const int64_t group = scale_group(rows);
  if (!scale) {
    const std::string columns = std::to_string(group) + " columns for " + name_of_4bit(rows);
    fail("ValueError", argument,
         "a scale per " + (by_group ? columns : "row for int8 or float8_e4m3fn") + " rows", "None");
  }
  dtype(*scale, argument,
        rows == DType::i4       ? ScalarType::BFloat16
        : rows == DType::f4e2m1 ? ScalarType::Float8_e4m3fn
                                : ScalarType::Float);
  std::vector<int64_t> sizes(expected);
  if (by_group) sizes.push_back(dim / group);
  shape(*scale, argument, sizes.data(), sizes.size());
  contiguous(*scale, argument);
  on_device(*scale, argument);
  RowScale data;
  if (by_group) {
    data.by_group = scale->data_ptr();
  } else {
    data.by_row = static_cast<float*>(scale->data_ptr());
  }
  return data;
}

}  // namespace microspec
