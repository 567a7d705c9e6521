// SPDX-License-Identifier: Apache-2.0
// Arithmetic and loads of one thread, under CUDA's names.
#pragma once

#include <math.h>

#include <bit>
#include <cstdint>
#include <type_traits>

#include "failure.h"

namespace microspec::emulation {

inline void check_aligned(const void* pointer, size_t bytes, const char* what, const Site& site) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes) fail(Kind::misaligned, what, site);
}

template <class T>
T load(const T* pointer, const char* name, const Site& site) {
  check_aligned(pointer, sizeof(T), name, site);
  return *pointer;
}
template <class T>
void store(T* pointer, T value, const char* name, const Site& site) {
  check_aligned(pointer, sizeof(T), name, site);
  *pointer = value;
}

// min and max of mixed arguments use the usual arithmetic conversions, as CUDA's overloads do.
template <class A, class B>
concept Arithmetic = std::is_arithmetic_v<A> && std::is_arithmetic_v<B>;
template <class A, class B>
auto smaller(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return static_cast<T>(fmin(T(a), T(b)));
  else
    return T(a) < T(b) ? T(a) : T(b);
}
template <class A, class B>
auto larger(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return static_cast<T>(fmax(T(a), T(b)));
  else
    return T(a) > T(b) ? T(a) : T(b);
}

}  // namespace microspec::emulation

template <class A, class B>
  requires microspec::emulation::Arithmetic<A, B>
auto min(A a, B b) {
  return microspec::emulation::smaller(a, b);
}
template <class A, class B>
  requires microspec::emulation::Arithmetic<A, B>
auto max(A a, B b) {
  return microspec::emulation::larger(a, b);
}

// Loads and stores with a cache operator. There is no __ldg: see ptx::load_once16.
#define MICROSPEC_LOAD(name)                                 \
  template <class T>                                         \
  T name(const T* pointer, MICROSPEC_SITE) {                 \
    return microspec::emulation::load(pointer, #name, site); \
  }
MICROSPEC_LOAD(__ldca)
MICROSPEC_LOAD(__ldcg)
MICROSPEC_LOAD(__ldcs)
#undef MICROSPEC_LOAD
#define MICROSPEC_STORE(name)                                            \
  template <class T>                                                     \
  void name(T* pointer, std::type_identity_t<T> value, MICROSPEC_SITE) { \
    microspec::emulation::store(pointer, value, #name, site);            \
  }
MICROSPEC_STORE(__stcg)
MICROSPEC_STORE(__stcs)
MICROSPEC_STORE(__stwb)
#undef MICROSPEC_STORE

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned which = selector >> (4 * i);
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (which & 7))) & 0xff;
    if (which & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

// Each operation rounds by itself, so g++ must not contract them (-ffp-contract=off).
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __expf(float a) { return expf(a); }
inline float __exp2f(float a) { return exp2f(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
// Saturates, and returns 0 for NaN.
inline int __float2int_rn(float a) {
  if (isnan(a)) return 0;
  const float whole = rintf(a);
  return whole >= 0x1p31f    ? 0x7fffffff
         : whole <= -0x1p31f ? static_cast<int>(0x80000000u)
                             : static_cast<int>(whole);
}
