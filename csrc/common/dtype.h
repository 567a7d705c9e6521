// SPDX-License-Identifier: Apache-2.0
// Element types of rows and activations for the torch-free kernels.
#pragma once

#include <cstdint>

namespace microspec {

enum class DType { f32, f16, bf16, i8, f8e4m3, i4, f4e2m1 };

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

// Two e2m1 columns, the even one in the low half: a sign, two bits of exponent and one of fraction.
struct f4e2m1x2_t {
  uint8_t bits;
};

// Columns of i4 rows that share a scale, a bf16; and of f4e2m1 rows, whose scale is an e4m3. So a row has
// D / 16 bytes of scales either way.
constexpr int64_t kScaleGroup = 32, kE2m1Group = 16;

constexpr bool is_4bit(DType type) { return type == DType::i4 || type == DType::f4e2m1; }
constexpr int64_t scale_group(DType type) { return type == DType::f4e2m1 ? kE2m1Group : kScaleGroup; }
// Bytes of the scales of a row of 4 bits.
constexpr int64_t scale_bytes(int64_t columns) { return columns / 16; }

// Bytes of a stored element. An element of 4-bit rows is a byte and has two columns.
constexpr int64_t element_size(DType type) {
  return type == DType::f32 ? 4 : (type == DType::f16 || type == DType::bf16) ? 2 : 1;
}
constexpr int64_t row_bytes(DType type, int64_t columns) {
  return is_4bit(type) ? columns / 2 : columns * element_size(type);
}

// Whether rows have scales.
constexpr bool is_quantised(DType type) {
  return type == DType::i8 || type == DType::f8e4m3 || is_4bit(type);
}

}  // namespace microspec
