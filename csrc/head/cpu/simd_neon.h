// SPDX-License-Identifier: Apache-2.0
// Advanced SIMD of every ARMv8 processor: four lanes, thirty-two registers. Both Arm sets use it.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "common/dtype.h"

namespace microspec {
namespace {

// Returns e4m3 bits shifted into fp16's fields: the value times 2^-8 (biases 7 and 15), subnormals included.
inline float16x8_t e4m3_as_f16(int8x8_t codes) {
  const uint16x8_t bits = vreinterpretq_u16_s16(vmovl_s8(codes));
  const uint16x8_t magnitude = vandq_u16(bits, vdupq_n_u16(0x7f));
  const uint16x8_t nan = vceqq_u16(magnitude, vdupq_n_u16(0x7f));
  const uint16x8_t sign = vandq_u16(bits, vdupq_n_u16(0x8000));
  return vreinterpretq_f16_u16(vorrq_u16(sign, vorrq_u16(nan, vshlq_n_u16(magnitude, 7))));
}

struct NeonVec {
  using Type = float32x4_t;
  static constexpr int kLanes = 4;
  // 4 * 6 accumulators, four rows and an activation take 29 of 32 registers.
  static constexpr int kRowsFor1 = 8, kRows = 4, kColumns = 6;
  // Two rows' eight vectors, their 2 * 4 sums, two products, scales and an activation take 29.
  static constexpr int kInt4Rows = 2, kInt4Columns = 4;
  static constexpr float gain(f8e4m3_t) { return 256.0f; }  // see e4m3_as_f16
  template <class Row>
  static constexpr float gain(Row) {
    return 1.0f;
  }
  static Type zero() { return vdupq_n_f32(0.0f); }
  static Type load(const float* p) { return vld1q_f32(p); }
  static Type load(const f16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
  }
  static Type load(const bf16_t* p) {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const uint16_t*>(p));
    return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
  }
  static Type load(const int8_t* p) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(four_bytes(p)))));
  }
  static Type load(const f8e4m3_t* p) { return vcvt_f32_f16(vget_low_f16(e4m3_as_f16(four_bytes(p)))); }
  // 16 bytes of codes are one group, eight columns a lane.
  using Codes = int32x4_t;
  static Codes load_codes(const char* p) {
    return vreinterpretq_s32_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(p)));
  }
  static Type column_of(Codes codes, int i) { return vcvtq_f32_s32(codes << (28 - 4 * i) >> 28); }
  // The codes' values times two, which fit into a byte: those of the even columns and of the odd ones.
  struct E2m1Codes {
    int32x4_t even, odd;
  };
  using E2m1Scales = uint16_t;
  static constexpr float kE2m1Gain = 0.5f;
  static E2m1Codes load_e2m1(const char* p) {
    const int8_t doubled[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const int8x16_t table = vld1q_s8(doubled);
    const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const uint8_t*>(p));
    return {vreinterpretq_s32_s8(vqtbl1q_s8(table, vandq_u8(bytes, vdupq_n_u8(15)))),
            vreinterpretq_s32_s8(vqtbl1q_s8(table, vshrq_n_u8(bytes, 4)))};
  }
  static Type e2m1_column_of(const E2m1Codes& codes, int i) {
    return vcvtq_f32_s32((i % 2 ? codes.odd : codes.even) << (24 - 8 * (i / 2)) >> 24);
  }
  static Type group_scales(const bf16_t* p) {
    return vreinterpretq_f32_u32(vdupq_n_u32(static_cast<uint32_t>(p->bits) << 16));
  }
  static Type fma(Type a, Type b, Type c) { return vfmaq_f32(c, a, b); }
  static float sum(Type v) { return vaddvq_f32(v); }

 private:
  static int8x8_t four_bytes(const void* p) {
    uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return vreinterpret_s8_u64(vcreate_u64(bytes));
  }
};

}  // namespace
}  // namespace microspec
