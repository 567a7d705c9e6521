// Any processor, through the compiler's generic vectors.
#include <cstdint>

#include "head/args.h"
#include "kernels.h"

namespace microspec {
namespace portable {

inline float widen(float value) { return value; }
inline float widen(int8_t value) { return value; }
inline float widen(bf16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}
// Shifted into fp32's exponent and scaled by the difference of the biases: exact, subnormals too.
inline float widen_small(uint32_t sign, uint32_t magnitude, uint32_t largest_finite, float gain) {
  uint32_t bits = magnitude;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  result *= gain;
  if (magnitude > largest_finite) result = __builtin_nanf("");
  return sign ? -result : result;
}
inline float widen(f16_t value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const float result =
      magnitude == 0x7c00u ? __builtin_inff() : widen_small(0, magnitude << 13, 0x7c00u << 13, 0x1p112f);
  return value.bits >> 15 ? -result : result;
}
inline float widen(f8e4m3_t value) {
  return widen_small(value.bits >> 7, (value.bits & 0x7fu) << 20, 0x7eu << 20, 0x1p120f);
}

struct Vec {
  // 16 bytes: what SSE2, NEON and their like all have.
  typedef float Type __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kRowsFor1 = 4, kRows = 2, kColumns = 4;
  template <class Row>
  static constexpr float gain(Row) {
    return 1.0f;
  }
  static Type zero() { return Type{}; }
  template <class Row>
  static Type load(const Row* p) {
    return Type{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
  static Type fma(Type a, Type b, Type c) { return a * b + c; }
  static float sum(Type v) { return (v[0] + v[2]) + (v[1] + v[3]); }
};

constexpr int64_t kChunk = Vec::kLanes;

#include "panel.inl"
#include "select.inl"

}  // namespace portable

const InstructionSet kPortable = {"portable", portable::widening_head<portable::Vec>, portable::select};

}  // namespace microspec
