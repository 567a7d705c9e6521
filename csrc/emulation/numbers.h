// SPDX-License-Identifier: Apache-2.0
// The narrow number formats, rounded as the PTX conversions round.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace microspec::emulation {

inline float float_of_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

inline float float_of_f16(uint16_t bits) {
  // Move the fields to their places in a float, and multiply by the difference of the biases.
  const auto scaled = std::bit_cast<float>(uint32_t{bits & 0x7fffu} << 13) * 0x1p112f;
  const float magnitude = (bits & 0x7c00) != 0x7c00 ? scaled : bits & 0x3ff ? NAN : INFINITY;
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Rounds to the code of a format with `mantissa_bits` and `bias`, nearest, ties to even. Overflow gives a
// code above the largest finite one. The sign is left out.
inline uint32_t rounded_code(float magnitude, int mantissa_bits, int bias) {
  // Count in units of the last place. Subnormals have the same unit as the smallest normal number.
  const int exponent = magnitude == 0 ? 1 - bias : std::max(std::ilogb(magnitude), 1 - bias);
  const double steps = std::nearbyint(std::ldexp(static_cast<double>(magnitude), mantissa_bits - exponent));
  // A carry out of the mantissa increments the exponent.
  return static_cast<uint32_t>((exponent + bias - 1) << mantissa_bits) + static_cast<uint32_t>(steps);
}

inline uint16_t f16_of_float(float value) {
  constexpr uint32_t kInfinity = 0x7c00;
  if (std::isnan(value)) return 0x7fff;
  const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isinf(value)) return static_cast<uint16_t>(sign | kInfinity);
  return static_cast<uint16_t>(sign | std::min(rounded_code(std::fabs(value), 10, 15), kInfinity));
}

inline uint16_t bf16_of_float(float value) {
  if (std::isnan(value)) return 0x7fff;
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// e4m3 has no infinity; all ones is NaN.
inline float float_of_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float magnitude;
  if ((bits & 0x7f) == 0x7f) {
    magnitude = NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -9);
  } else {
    magnitude = std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  }
  return bits & 0x80 ? -magnitude : magnitude;
}

// Clamps to the largest finite number.
inline uint8_t e4m3_of_float(float value) {
  constexpr uint32_t kLargest = 0x7e;
  if (std::isnan(value)) return 0x7f;
  const uint32_t sign = std::signbit(value) ? 0x80 : 0;
  const uint32_t code =
      std::isinf(value) ? kLargest : std::min(rounded_code(std::fabs(value), 3, 7), kLargest);
  return static_cast<uint8_t>(sign | code);
}

}  // namespace microspec::emulation
