// SPDX-License-Identifier: Apache-2.0
// Shuffles, votes and reductions of a warp.
#pragma once

#include <bit>
#include <concepts>
#include <cstring>

#include "collectives.h"

namespace microspec::emulation {

// The types for which CUDA overloads these functions.
template <class T>
concept WarpValue = std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, long> ||
                    std::same_as<T, unsigned long> || std::same_as<T, long long> ||
                    std::same_as<T, unsigned long long> || std::same_as<T, float> || std::same_as<T, double>;
template <class T>
concept WarpWord = std::same_as<T, int> || std::same_as<T, unsigned>;

template <class T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T value_of(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
T shuffle(const char* name, WarpOp op, unsigned mask, T value, unsigned source, int width, const Site& site) {
  const WarpRequest request{op, mask, bits_of(value), source, static_cast<unsigned>(width)};
  return value_of<T>(warp_collective(name, request, site));
}

template <class T>
T reduce(const char* name, WarpOp op, unsigned mask, T value, const Site& site) {
  return static_cast<T>(warp_collective(name, {op, mask, static_cast<uint32_t>(value)}, site));
}

inline unsigned vote(const char* name, WarpOp op, unsigned mask, int predicate, const Site& site) {
  return static_cast<unsigned>(warp_collective(name, {op, mask, uint64_t{predicate != 0}}, site));
}

}  // namespace microspec::emulation

inline void __syncwarp(unsigned mask = 0xffffffffu, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  warp_collective("__syncwarp", {WarpOp::sync, mask}, site);
}

template <microspec::emulation::WarpValue T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return shuffle("__shfl_sync", WarpOp::shfl, mask, value, static_cast<unsigned>(source), width, site);
}
template <microspec::emulation::WarpValue T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return shuffle("__shfl_up_sync", WarpOp::shfl_up, mask, value, distance, width, site);
}
template <microspec::emulation::WarpValue T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return shuffle("__shfl_down_sync", WarpOp::shfl_down, mask, value, distance, width, site);
}
template <microspec::emulation::WarpValue T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return shuffle("__shfl_xor_sync", WarpOp::shfl_xor, mask, value, static_cast<unsigned>(lanes), width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return vote("__ballot_sync", WarpOp::ballot, mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return static_cast<int>(vote("__any_sync", WarpOp::any, mask, predicate, site));
}
inline int __all_sync(unsigned mask, int predicate, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return static_cast<int>(vote("__all_sync", WarpOp::all, mask, predicate, site));
}
template <microspec::emulation::WarpValue T>
unsigned __match_any_sync(unsigned mask, T value, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return static_cast<unsigned>(
      warp_collective("__match_any_sync", {WarpOp::match_any, mask, bits_of(value)}, site));
}

template <microspec::emulation::WarpWord T>
T __reduce_add_sync(unsigned mask, T value, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return reduce("__reduce_add_sync", WarpOp::add, mask, value, site);
}
template <microspec::emulation::WarpWord T>
T __reduce_min_sync(unsigned mask, T value, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  const WarpOp op = std::same_as<T, int> ? WarpOp::min_signed : WarpOp::min_unsigned;
  return reduce("__reduce_min_sync", op, mask, value, site);
}
template <microspec::emulation::WarpWord T>
T __reduce_max_sync(unsigned mask, T value, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  const WarpOp op = std::same_as<T, int> ? WarpOp::max_signed : WarpOp::max_unsigned;
  return reduce("__reduce_max_sync", op, mask, value, site);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return reduce("__reduce_and_sync", WarpOp::bit_and, mask, value, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return reduce("__reduce_or_sync", WarpOp::bit_or, mask, value, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, MICROSPEC_SITE) {
  using namespace microspec::emulation;
  return reduce("__reduce_xor_sync", WarpOp::bit_xor, mask, value, site);
}
