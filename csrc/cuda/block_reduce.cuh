// SPDX-License-Identifier: Apache-2.0
// Counts and prefix sums over a warp or a block, in integers, so that the order does not change the
// result.
//
// A block-wide step takes one word a warp in shared memory, one __syncthreads, and a reduction of those words
// that every warp does for itself. So no second barrier is needed to distribute the result. The array of
// words may be written again only after another barrier.
#pragma once

#include "platform.cuh"

namespace microspec {

constexpr int kMaxWarps = 32;  // in a block

MICROSPEC_DEVICE int warps_in_block() { return static_cast<int>(blockDim.x) / kWarp; }

// Returns the mask of the lanes before this one.
MICROSPEC_DEVICE unsigned lanes_below() { return (1u << lane_index()) - 1; }

// Returns the word of the warp whose index is this lane's, or `none` beyond the last warp. Call it after each
// warp's lane 0 has written its word and a barrier.
template <class T>
MICROSPEC_DEVICE T word_of_warp(const T* words, T none) {
  return lane_index() < warps_in_block() ? words[lane_index()] : none;
}

struct Prefix {
  unsigned before;  // sum over the warps before this one
  unsigned total;   // sum over all warps
};

// Returns sums of the warps' words.
MICROSPEC_DEVICE Prefix sum_of_warps(const unsigned* words) {
  const unsigned word = word_of_warp(words, 0u);
  return {__reduce_add_sync(kAllLanes, lane_index() < warp_index() ? word : 0u),
          __reduce_add_sync(kAllLanes, word)};
}

}  // namespace microspec
