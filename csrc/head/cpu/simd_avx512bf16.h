// SPDX-License-Identifier: Apache-2.0
// VDPBF16PS adds two products of bf16 a lane, without widening. The AVX-512 bf16 and AMX sets use it.
#pragma once

#include "simd_avx512.h"

namespace microspec {
namespace {

// Loads thirty-two elements of a row as bf16, which represents int8 and fp8 exactly (fp8 without Avx512Vec's
// gain).
inline __m512i widen(const bf16_t* p) { return _mm512_loadu_si512(p); }
template <class Row>
inline __m512i widen(const Row* p) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(Avx512Vec::load(p + 16), Avx512Vec::load(p)));
}

struct Bf16Mac {
  using Row = bf16_t;
  using Hidden = bf16_t;
  using Acc = __m512;
  using RowVec = __m512i;
  static constexpr int kStep = 32;
  static constexpr int kRowsFor1 = Avx512Vec::kRowsFor1, kRows = Avx512Vec::kRows;
  static constexpr int kColumns = Avx512Vec::kColumns;
  static constexpr float kGain = 1.0f;
  static Acc zero() { return _mm512_setzero_ps(); }
  static RowVec load(const bf16_t* p) { return _mm512_loadu_si512(p); }
  static RowVec load_partial(const bf16_t* p, int count) {
    return _mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, p);
  }
  static RowVec load_hidden(const bf16_t* p) { return _mm512_loadu_si512(p); }
  static Acc mac(Acc acc, RowVec w, RowVec x) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  static float sum(Acc acc) { return _mm512_reduce_add_ps(acc); }
};

}  // namespace
}  // namespace microspec
