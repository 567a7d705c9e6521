// SPDX-License-Identifier: Apache-2.0
// Counts, maxima and prefix sums over a warp or a block, in integers: the same whatever the order.
//
// A block-wide step is one word a warp in shared memory, one __syncthreads, and a reduction of those
// words that every warp does for itself, so that no second barrier has to hand the result out. The
// array of words may be written again only after another barrier.
#pragma once

#include "platform.cuh"

namespace microspec {

constexpr int kMaxWarps = 32;  // in a block

MICROSPEC_DEVICE int warps_in_block() { return static_cast<int>(blockDim.x) / kWarp; }

// The lanes before this one.
MICROSPEC_DEVICE unsigned lanes_below() { return (1u << lane_index()) - 1; }

// The largest value in the warp: high words first, then the low words of those that have it.
MICROSPEC_DEVICE uint64_t warp_max(uint64_t value) {
  const uint32_t high = static_cast<uint32_t>(value >> 32);
  const uint32_t top = __reduce_max_sync(kAllLanes, high);
  const uint32_t low = __reduce_max_sync(kAllLanes, high == top ? static_cast<uint32_t>(value) : 0u);
  return static_cast<uint64_t>(top) << 32 | low;
}

// After each warp's lane 0 wrote its word and a barrier: this lane's warp's word, `none` beyond the
// last warp.
template <class T>
MICROSPEC_DEVICE T word_of_warp(const T* words, T none) {
  return lane_index() < warps_in_block() ? words[lane_index()] : none;
}

// The largest of the warps' words.
MICROSPEC_DEVICE uint64_t max_of_warps(const uint64_t* words) {
  return warp_max(word_of_warp(words, uint64_t{0}));
}

struct Prefix {
  unsigned before;  // sum over the warps before this one
  unsigned total;   // sum over all warps
};

// Sums of the warps' words.
MICROSPEC_DEVICE Prefix sum_of_warps(const unsigned* words) {
  const unsigned word = word_of_warp(words, 0u);
  return {__reduce_add_sync(kAllLanes, lane_index() < warp_index() ? word : 0u),
          __reduce_add_sync(kAllLanes, word)};
}

}  // namespace microspec
