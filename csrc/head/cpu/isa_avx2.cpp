// SPDX-License-Identifier: Apache-2.0
// AVX2 with FMA and F16C: eight lanes, sixteen registers.
#include <immintrin.h>

#include <cstdint>

#include "head/args.h"
#include "kernels.h"

namespace microspec {
namespace avx2 {

struct Vec {
  using Type = __m256;
  static constexpr int kLanes = 8;
  // 2 * 5 accumulators, two rows and an activation take 13 of 16 registers.
  static constexpr int kRowsFor1 = 8, kRows = 2, kColumns = 5;
  static constexpr int kInt4Rows = 1, kInt4Columns = 4;
  static constexpr float gain(f8e4m3_t) { return 256.0f; }  // see load(const f8e4m3_t*)
  template <class Row>
  static constexpr float gain(Row) {
    return 1.0f;
  }
  static Type zero() { return _mm256_setzero_ps(); }
  static Type load(const float* p) { return _mm256_loadu_ps(p); }
  static Type load(const f16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Type load(const bf16_t* p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static Type load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // e4m3 bits shifted into fp16's fields represent the value times 2^-8 (biases 7 and 15), subnormals
  // included.
  static Type load(const f8e4m3_t* p) {
    const __m128i bits = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m128i magnitude = _mm_and_si128(bits, _mm_set1_epi16(0x7f));
    const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
    const __m128i sign = _mm_and_si128(bits, _mm_set1_epi16(static_cast<int16_t>(0x8000)));
    const __m128i half = _mm_or_si128(sign, _mm_or_si128(nan, _mm_slli_epi16(magnitude, 7)));
    return _mm256_cvtph_ps(half);
  }
  // 32 bytes of codes are two groups, eight columns a lane.
  using Codes = __m256i;
  static Codes load_codes(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Type column_of(Codes codes, int i) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(codes, 28 - 4 * i), 28));
  }
  using E2m1Codes = __m256i;
  using E2m1Scales = uint32_t;
  static constexpr float kE2m1Gain = 1.0f;
  static Codes load_e2m1(const char* p) { return load_codes(p); }
  // VPERMPS looks up a lane's lowest three bits.
  static Type e2m1_column_of(Codes codes, int i) {
    const Type magnitudes = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const Type magnitude = _mm256_permutevar8x32_ps(magnitudes, _mm256_srli_epi32(codes, 4 * i));
    const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28 - 4 * i), _mm256_set1_epi32(INT32_MIN));
    return _mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign));
  }
  static Type group_scales(const bf16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    const __m256i both = _mm256_set1_epi32(pair);
    const __m256i first = _mm256_slli_epi32(both, 16);
    return _mm256_castsi256_ps(
        _mm256_blend_epi32(first, _mm256_and_si256(both, _mm256_set1_epi32(0xffff0000)), 0xf0));
  }
  static Type fma(Type a, Type b, Type c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(Type v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
};

constexpr int64_t kChunk = Vec::kLanes;

#include "panel.inl"
#include "select.inl"
#include "draw.inl"

}  // namespace avx2

const InstructionSet kAvx2 = {"avx2", avx2::widening_head<avx2::Vec>, avx2::select, avx2::draw};

}  // namespace microspec
