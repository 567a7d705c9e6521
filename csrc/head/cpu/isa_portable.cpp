// SPDX-License-Identifier: Apache-2.0
// Any processor, through the compiler's generic vectors.
#include <cstdint>

#include "head/args.h"
#include "kernels.h"

namespace microspec {
namespace portable {

// 16 bytes, which SSE2, NEON and similar instruction sets all have.
typedef float Four __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef int32_t SignedWords __attribute__((vector_size(16)));

// Loads four integers and extends each to a word.
template <class Integer>
inline SignedWords load_words(const void* p) {
  typedef Integer Integers __attribute__((vector_size(4 * sizeof(Integer))));
  Integers integers;
  __builtin_memcpy(&integers, p, sizeof integers);
  return __builtin_convertvector(integers, SignedWords);
}

// Rebiases numbers of a smaller format whose exponent and fraction are already in fp32's fields. A subnormal
// 0.f * 2^e becomes 1.f * 2^(e - 1) by this; twice that less 2^e is the value. No fp32 subnormal occurs on
// the way: processors may take a hundred cycles for one.
inline Four rebias(Words magnitude, uint32_t bias) {
  const uint32_t shift = (127 - bias) << 23, least_normal = shift + (1u << 23);
  const SignedWords bits = reinterpret_cast<SignedWords>(magnitude + shift);
  const Four value = reinterpret_cast<Four>(bits);
  const Four surplus = value - reinterpret_cast<Four>(Words{} + least_normal);
  const SignedWords subnormal = bits < static_cast<int32_t>(least_normal);
  return value + reinterpret_cast<Four>(subnormal & reinterpret_cast<SignedWords>(surplus));
}

// Adds the sign of `bits`, and makes infinity or NaN where `special` is all ones.
inline Four finish(Four magnitude, SignedWords special, SignedWords bits) {
  const SignedWords sign = bits & INT32_MIN, exponent = special & 0x7f800000;
  return reinterpret_cast<Four>(reinterpret_cast<SignedWords>(magnitude) | sign | exponent);
}

inline Four widen(const float* p) {
  Four values;
  __builtin_memcpy(&values, p, sizeof values);
  return values;
}
inline Four widen(const bf16_t* p) { return reinterpret_cast<Four>(load_words<int16_t>(p) << 16); }
inline Four widen(const int8_t* p) { return __builtin_convertvector(load_words<int8_t>(p), Four); }
inline Four widen(const f16_t* p) {
  const SignedWords bits = load_words<int16_t>(p), magnitude = bits & 0x7fff;
  return finish(rebias(reinterpret_cast<Words>(magnitude << 13), 15), magnitude >= 0x7c00, bits);
}
inline Four widen(const f8e4m3_t* p) {
  const SignedWords bits = load_words<int8_t>(p), magnitude = bits & 0x7f;
  return finish(rebias(reinterpret_cast<Words>(magnitude << 20), 7), magnitude == 0x7f, bits);
}

struct Vec {
  using Type = Four;
  static constexpr int kLanes = 4;
  // Widening a row costs more than multiplying it, so as many activations share a widened row as 16 registers
  // allow.
  static constexpr int kRowsFor1 = 4, kRows = 1, kColumns = 10;
  static constexpr int kInt4Rows = 1, kInt4Columns = 4;
  template <class Row>
  static constexpr float gain(Row) {
    return 1.0f;
  }
  static Type zero() { return Type{}; }
  template <class Row>
  static Type load(const Row* p) {
    return widen(p);
  }
  // 16 bytes of codes are one group, eight columns a lane.
  using Codes = SignedWords;
  static Codes load_codes(const char* p) {
    Codes codes;
    __builtin_memcpy(&codes, p, sizeof codes);
    return codes;
  }
  static Type column_of(Codes codes, int i) {
    return __builtin_convertvector(codes << (28 - 4 * i) >> 28, Type);
  }
  using E2m1Codes = SignedWords;
  using E2m1Scales = uint16_t;
  static constexpr float kE2m1Gain = 1.0f;
  static Codes load_e2m1(const char* p) { return load_codes(p); }
  static Type e2m1_column_of(Codes codes, int i) {
    const SignedWords magnitude = (codes >> 4 * i & 7) << 22;
    return finish(rebias(reinterpret_cast<Words>(magnitude), 1), SignedWords{}, codes << (28 - 4 * i));
  }
  static Type group_scales(const bf16_t* p) {
    return reinterpret_cast<Type>(Words{} + (static_cast<uint32_t>(p->bits) << 16));
  }
  static Type fma(Type a, Type b, Type c) { return a * b + c; }
  static float sum(Type v) { return (v[0] + v[2]) + (v[1] + v[3]); }
};

constexpr int64_t kChunk = Vec::kLanes;

#include "panel.inl"
#include "select.inl"
#include "draw.inl"

}  // namespace portable

const InstructionSet kPortable = {"portable", portable::widening_head<portable::Vec>, portable::select,
                                  portable::draw};

}  // namespace microspec
