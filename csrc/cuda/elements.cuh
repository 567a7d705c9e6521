// SPDX-License-Identifier: Apache-2.0
// Conversions between 32-bit words and floats, for elements of rows and activations in registers.
#pragma once

#include <type_traits>

#include "common/dtype.h"
#include "ptx.cuh"

namespace microspec {

// Elements in 16 bytes, the widest access.
template <class Element>
constexpr int kVector = 16 / static_cast<int>(sizeof(Element));

template <class Element>
constexpr bool kIsInt4 = std::is_same_v<Element, i4x2_t>;
template <class Element>
constexpr bool kIsE2m1 = std::is_same_v<Element, f4e2m1x2_t>;
template <class Element>
constexpr bool kIs4Bit = kIsInt4<Element> || kIsE2m1<Element>;
// Columns of D in a stored element.
template <class Element>
constexpr int kColumns = kIs4Bit<Element> ? 2 : 1;

// The elements of a 32-bit word: unpack widens them to floats, and pack rounds two floats to 16-bit elements.
template <class Element>
struct Elements;

template <>
struct Elements<float> {
  static constexpr int kPerWord = 1;
  MICROSPEC_DEVICE static void unpack(uint32_t word, float* values) { values[0] = __uint_as_float(word); }
};

template <>
struct Elements<bf16_t> {
  static constexpr int kPerWord = 2;
  MICROSPEC_DEVICE static void unpack(uint32_t word, float* values) {
    values[0] = __uint_as_float(word << 16);
    values[1] = __uint_as_float(word & 0xffff0000u);
  }
  MICROSPEC_DEVICE static uint32_t pack(float low, float high) { return ptx::bf16x2_of_floats(low, high); }
};

template <>
struct Elements<f16_t> {
  static constexpr int kPerWord = 2;
  MICROSPEC_DEVICE static void unpack(uint32_t word, float* values) {
    const float2 pair = ptx::float2_of_f16x2(word);
    values[0] = pair.x;
    values[1] = pair.y;
  }
  MICROSPEC_DEVICE static uint32_t pack(float low, float high) { return ptx::f16x2_of_floats(low, high); }
};

template <>
struct Elements<f8e4m3_t> {
  static constexpr int kPerWord = 4;
  MICROSPEC_DEVICE static void unpack(uint32_t word, float* values) {
    Elements<f16_t>::unpack(ptx::f16x2_of_e4m3x2(word & 0xffffu), values);
    Elements<f16_t>::unpack(ptx::f16x2_of_e4m3x2(word >> 16), values + 2);
  }
};

template <>
struct Elements<int8_t> {
  static constexpr int kPerWord = 4;
  // The conversion instruction runs at a quarter of the rate of an addition. So place an unsigned byte in the
  // last bits of 2^23, which gives 2^23 + byte, and subtract. Flipping the sign bit makes a signed byte
  // unsigned.
  MICROSPEC_DEVICE static void unpack(uint32_t word, float* values) {
    constexpr float kOffset = 8388608.0f + 128.0f;
    const uint32_t bytes = word ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = __uint_as_float(0x4b000000u | ((bytes >> (8 * i)) & 0xffu)) - kOffset;
    }
  }
};

template <>
struct Elements<i4x2_t> {
  static constexpr int kPerWord = 8;  // columns
  // Needs neither a conversion nor a shift for each column: a code that is left in bits 4 i to 4 i + 3 of the
  // mantissa counts in ones beside 2^(23 - 4 i). Flipping its sign bit makes it unsigned, which adds 8.
  MICROSPEC_DEVICE static void unpack(uint32_t word, float* values) {
    constexpr int kInPlace = 5;  // codes that fit into a mantissa
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) {
      const int place = 4 * (i % kInPlace);
      const uint32_t bits = i < kInPlace ? word : word >> (4 * kInPlace);
      const uint32_t power = (150u - place) << 23;  // the bits of 2^(23 - place)
      const uint32_t sum = ptx::and_xor(bits, 0xfu << place, power | 0x8u << place);
      values[i] = __uint_as_float(sum) - (__uint_as_float(power) + 8.0f);
    }
  }
};

// What is left to multiply e2m1's unpacked values by. A group's scale takes it.
constexpr float kE2m1Gain = 0x1p14f;

template <>
struct Elements<f4e2m1x2_t> {
  static constexpr int kPerWord = 8;  // columns
  // A code's magnitude in fp16's fields is its value but for the bias, a factor of 2^14, subnormals included.
  // Codes i and i + 4 are 16 bits apart, and so are converted together.
  MICROSPEC_DEVICE static void unpack(uint32_t word, float* values) {
#pragma unroll
    for (int i = 0; i < kPerWord / 2; ++i) {
      const uint32_t raised = i < 3 ? word << (9 - 4 * i) : word >> 3;
      const uint32_t pair = (raised & 0x0e000e00u) | (word << (12 - 4 * i) & 0x80008000u);
      const float2 two = ptx::float2_of_f16x2(pair);
      values[i] = two.x;
      values[i + 4] = two.y;
    }
  }
};

// Converts e4m3, also where the GPU cannot: in fp32's fields it is its value but for a factor of 2^120.
MICROSPEC_DEVICE float float_of_e4m3(uint32_t byte) {
  const uint32_t magnitude = byte & 0x7fu;
  const uint32_t bits = magnitude == 0x7fu ? 0x7fc00000u : magnitude << 20;
  return __uint_as_float((byte & 0x80u) << 24 | bits) * 0x1p120f;
}

// Converts a word of eight i4 columns to pairs of 16-bit elements, exactly. Pair i has columns i and i + 4,
// which are half a word apart, so one logical instruction takes both. As above, a code with a flipped sign
// bit counts in ones beside a power of two, here 2^7 (bf16) or 2^10 (fp16). Without the subtraction the sums
// would be of 2^7 + 8 + code, and their rounding errors 17 times as large.
template <class Element>
MICROSPEC_DEVICE void unpack_pairs(uint32_t word, uint32_t (&pairs)[4]) {
  constexpr uint32_t kCodes = 0x000f000fu;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = word >> 4 * i;
    if constexpr (std::is_same_v<Element, bf16_t>) {
      constexpr uint32_t kPower = 0x43004300u | 0x00080008u, kOne = 0x3f803f80u, kMinus136 = 0xc308c308u;
      pairs[i] = ptx::fma_bf16x2(ptx::and_xor(bits, kCodes, kPower), kOne, kMinus136);
    } else {
      constexpr uint32_t kPower = 0x64006400u | 0x00080008u, kOne = 0x3c003c00u, kMinus1032 = 0xe408e408u;
      pairs[i] = ptx::fma_f16x2(ptx::and_xor(bits, kCodes, kPower), kOne, kMinus1032);
    }
  }
}

// What is left to multiply sums of e2m1 codes times scales in pairs by.
template <class Element>
constexpr float kE2m1Left = std::is_same_v<Element, bf16_t> ? 0x1p8f : 0x1p7f;

// Converts two e4m3, in the high bytes of the halves of a word whose low bytes are 0, to a pair of scales for
// unpack_scaled_pairs, times 2^118 (bf16) or 2^7 (fp16). In the fields of either type e4m3 is its value but
// for the bias, subnormals included. A NaN's seven bits are all set: adding one to them carries into the bit
// above, and the exponent becomes that of a NaN.
template <class Element>
MICROSPEC_DEVICE uint32_t scales_of_e4m3x2(uint32_t high_bytes) {
  const uint32_t signs = high_bytes & 0x80008000u;
  if constexpr (std::is_same_v<Element, bf16_t>) {
    constexpr uint32_t k2To120 = 0x7b807b80u, k2To118 = 0x7a807a80u;
    const uint32_t magnitudes = high_bytes >> 4 & 0x07f007f0u;
    const uint32_t nans = (magnitudes + 0x00100010u) & 0x08000800u;
    const uint32_t scales = ptx::fma_bf16x2((magnitudes + 15 * nans) | signs, k2To120, 0);
    return ptx::fma_bf16x2(scales, k2To118, 0);
  } else {
    constexpr uint32_t k2To15 = 0x78007800u;
    const uint32_t magnitudes = high_bytes >> 1 & 0x3f803f80u;
    const uint32_t nans = (magnitudes + 0x00800080u) & 0x40004000u;
    return ptx::fma_f16x2(magnitudes | nans | signs, k2To15, 0);
  }
}

// Converts a word of eight e2m1 columns to pairs as above, times the pair of scales. A code's magnitude in
// the fields of a 16-bit type is its value times 2^-126 (bf16) or 2^-14 (fp16), subnormals included. Each
// product is exact: it has six significant bits and is a multiple of 2^-18 (bf16) or 2^-17 (fp16).
template <class Element>
MICROSPEC_DEVICE void unpack_scaled_pairs(uint32_t word, uint32_t scales, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t top = word << (12 - 4 * i);  // the codes in the highest bits of the halves
    const uint32_t signs = top & 0x80008000u;
    if constexpr (std::is_same_v<Element, bf16_t>) {
      pairs[i] = ptx::fma_bf16x2((top >> 6 & 0x01c001c0u) | signs, scales, 0);
    } else {
      pairs[i] = ptx::fma_f16x2((top >> 3 & 0x0e000e00u) | signs, scales, 0);
    }
  }
}

// Unpacks 16 bytes to floats, one for each column.
template <class Element>
MICROSPEC_DEVICE void unpack16(const uint4& words, float* values) {
  constexpr int kPerWord = Elements<Element>::kPerWord;
  Elements<Element>::unpack(words.x, values);
  Elements<Element>::unpack(words.y, values + kPerWord);
  Elements<Element>::unpack(words.z, values + 2 * kPerWord);
  Elements<Element>::unpack(words.w, values + 3 * kPerWord);
}

// Loads the first `count` elements from a pointer that is aligned to one element only. The rest is zero.
template <class Element>
MICROSPEC_DEVICE uint4 load_elements(const Element* source, int64_t count) {
  constexpr int kPerWord = kVector<Element> / 4;
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < kVector<Element>; ++i) {
    uint32_t bits = 0;
    if (i < count) {
      if constexpr (sizeof(Element) == 1) {
        bits = reinterpret_cast<const uint8_t*>(source)[i];
      } else if constexpr (sizeof(Element) == 2) {
        bits = reinterpret_cast<const uint16_t*>(source)[i];
      } else {
        bits = reinterpret_cast<const uint32_t*>(source)[i];
      }
    }
    words[i / kPerWord] |= bits << (i % kPerWord * (32 / kPerWord));
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

}  // namespace microspec
