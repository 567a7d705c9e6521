// SPDX-License-Identifier: Apache-2.0
// AVX-512 (F, BW, VL, DQ): sixteen lanes, thirty-two registers. Both AVX-512 sets use it.
#pragma once

#include <immintrin.h>

#include "common/dtype.h"

namespace microspec {
namespace {

struct Avx512Vec {
  using Type = __m512;
  static constexpr int kLanes = 16;
  // 4 * 6 accumulators, four rows and an activation take 29 of 32 registers.
  static constexpr int kRowsFor1 = 8, kRows = 4, kColumns = 6;
  // Two rows' eight vectors and their 2 * 5 sums take 26.
  static constexpr int kInt4Rows = 2, kInt4Columns = 5;
  static constexpr float gain(f8e4m3_t) { return 256.0f; }  // see load(const f8e4m3_t*)
  template <class Row>
  static constexpr float gain(Row) {
    return 1.0f;
  }
  static Type zero() { return _mm512_setzero_ps(); }
  static Type load(const float* p) { return _mm512_loadu_ps(p); }
  static Type load(const f16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Type load(const bf16_t* p) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  }
  static Type load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // e4m3 bits shifted into fp16's fields represent the value times 2^-8 (biases 7 and 15), subnormals
  // included.
  static Type load(const f8e4m3_t* p) {
    const __m256i bits = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi16(0x7f));
    const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_and_si256(bits, _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
    return _mm512_cvtph_ps(_mm256_or_si256(sign, _mm256_or_si256(nan, _mm256_slli_epi16(magnitude, 7))));
  }
  // 64 bytes of codes are four groups, eight columns a lane. VPERMPS looks up a lane's lowest four bits.
  using Codes = __m512i;
  static Codes load_codes(const char* p) { return _mm512_loadu_si512(p); }
  static Type column_of(Codes codes, int i) {
    const Type values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * i), values);
  }
  using E2m1Codes = __m512i;
  using E2m1Scales = uint64_t;
  static constexpr float kE2m1Gain = 1.0f;
  static Codes load_e2m1(const char* p) { return load_codes(p); }
  static Type e2m1_column_of(Codes codes, int i) {
    const Type values = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f,
                                       -1.5f, -2.0f, -3.0f, -4.0f, -6.0f);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4 * i), values);
  }
  static Type group_scales(const bf16_t* p) {
    int64_t four;
    __builtin_memcpy(&four, p, sizeof four);
    // Quarter q of a register takes bytes 2 q and 2 q + 1 to the upper half of each lane.
    const __m512i from = _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm256_setr_m128i(_mm_set1_epi32(0x01008080), _mm_set1_epi32(0x03028080))),
        _mm256_setr_m128i(_mm_set1_epi32(0x05048080), _mm_set1_epi32(0x07068080)), 1);
    return _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_set1_epi64(four), from));
  }
  static Type fma(Type a, Type b, Type c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(Type v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace
}  // namespace microspec
