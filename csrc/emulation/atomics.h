// SPDX-License-Identifier: Apache-2.0
// Atomics and fences, for the types that CUDA supports. There are none on floats, which the project forbids
// (their order decides the result). As on CUDA, an atomic alone orders no other access.
#pragma once

#include <algorithm>
#include <concepts>

#include "runtime.h"

namespace microspec::emulation {

template <class T>
concept AtomicWord = std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, unsigned long long>;
template <class T>
concept AtomicOrdered = AtomicWord<T> || std::same_as<T, long long>;

// begin_atomic and end_atomic enclose every atomic operation. They may let other threads go first, and they
// notify races.h.
void begin_atomic(const void* address, size_t bytes, const Site& site);
void end_atomic(const void* address);
void fence_of_current();

// Replaces the value with f(value) and returns the old value.
template <class T, class F>
T update_atomically(T* address, const Site& site, F&& f) {
  begin_atomic(address, sizeof(T), site);
  T before = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (
      !__atomic_compare_exchange_n(address, &before, f(before), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  end_atomic(address);
  return before;
}

}  // namespace microspec::emulation

// The second operand does not deduce T, so it converts, as on CUDA.
#define MICROSPEC_ATOMIC(name, types, result)                                                             \
  template <microspec::emulation::types T>                                                                \
  T name(T* address, std::type_identity_t<T> value, MICROSPEC_SITE) {                                     \
    return microspec::emulation::update_atomically(address, site, [&](T before) -> T { return result; }); \
  }
MICROSPEC_ATOMIC(atomicAdd, AtomicWord, before + value)
MICROSPEC_ATOMIC(atomicMin, AtomicOrdered, std::min(before, value))
MICROSPEC_ATOMIC(atomicMax, AtomicOrdered, std::max(before, value))
MICROSPEC_ATOMIC(atomicAnd, AtomicWord, before& value)
MICROSPEC_ATOMIC(atomicOr, AtomicWord, before | value)
MICROSPEC_ATOMIC(atomicXor, AtomicWord, before ^ value)
MICROSPEC_ATOMIC(atomicExch, AtomicWord, (static_cast<void>(before), value))
#undef MICROSPEC_ATOMIC

inline unsigned atomicInc(unsigned* address, unsigned limit, MICROSPEC_SITE) {
  return microspec::emulation::update_atomically(
      address, site, [&](unsigned before) { return before >= limit ? 0 : before + 1; });
}
inline unsigned atomicDec(unsigned* address, unsigned limit, MICROSPEC_SITE) {
  return microspec::emulation::update_atomically(
      address, site, [&](unsigned before) { return before == 0 || before > limit ? limit : before - 1; });
}
template <microspec::emulation::AtomicWord T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value, MICROSPEC_SITE) {
  return microspec::emulation::update_atomically(
      address, site, [&](T before) { return before == expected ? value : before; });
}

inline void __threadfence() { microspec::emulation::fence_of_current(); }
// Orders accesses within the block only. No kernel here relies on that, so it orders nothing.
inline void __threadfence_block() {}
