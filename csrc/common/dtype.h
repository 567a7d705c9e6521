// SPDX-License-Identifier: Apache-2.0
// Element types of rows and activations for the torch-free kernels.
#pragma once

#include <cstdint>

namespace microspec {

enum class DType { f32, f16, bf16, i8, f8e4m3, i4 };

// Storage types. They are distinct, so that overloads can select by type.
struct f16_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};
struct f8e4m3_t {
  uint8_t bits;
};

// Two int4 columns, the even one in the low half.
struct i4x2_t {
  uint8_t bits;
};

// Columns of i4 rows that share a scale, a bf16.
constexpr int64_t kScaleGroup = 32;

// Bytes of a stored element. An i4 element is a byte and has two columns.
constexpr int64_t element_size(DType type) {
  return type == DType::f32 ? 4 : (type == DType::f16 || type == DType::bf16) ? 2 : 1;
}
constexpr int64_t row_bytes(DType type, int64_t columns) {
  return type == DType::i4 ? columns / 2 : columns * element_size(type);
}

// Whether rows have scales.
constexpr bool is_quantised(DType type) {
  return type == DType::i8 || type == DType::f8e4m3 || type == DType::i4;
}

}  // namespace microspec
