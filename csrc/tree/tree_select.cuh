// SPDX-License-Identifier: Apache-2.0
// The order of a text's candidates, as keys, and the choice of the best of them by one block.
#pragma once

#include "cuda/block_select.cuh"
#include "tree/args.h"

namespace microspec::tree {

// A key has the candidate's cost in the bits above its index. The better candidate has the larger key.
constexpr int kIndexBits = 16;
constexpr unsigned kLastIndex = (1u << kIndexBits) - 1;
static_assert(kMostCandidatesOnCuda == int64_t{1} << kIndexBits);

MICROSPEC_DEVICE float infinity() { return __uint_as_float(0x7f800000u); }

// Returns a key other than 0. `cost` is not NaN.
MICROSPEC_DEVICE uint64_t key_of(float cost, int index) {
  const uint32_t bits = __float_as_uint(cost == 0 ? 0.0f : cost);  // -0 equals 0
  const uint32_t falling = bits >> 31 ? bits : ~(bits | 0x80000000u);
  return static_cast<uint64_t>(falling) << kIndexBits | (kLastIndex - static_cast<unsigned>(index));
}
MICROSPEC_DEVICE int index_of(uint64_t key) {
  return static_cast<int>(kLastIndex - (static_cast<unsigned>(key) & kLastIndex));
}

// The keys of costs [count], which are not NaN or count as infinite. `kOnlyFinite`: infinite costs have no
// key. Thread i of the block holds the key of candidate i in a register; the rest are made when visited.
template <bool kOnlyFinite>
struct Keys {
  const float* costs;
  int count;
  uint64_t first;  // of candidate threadIdx.x, or 0

  static MICROSPEC_DEVICE uint64_t key(float cost, int index) {
    return !kOnlyFinite || cost < infinity() ? key_of(cost, index) : 0;
  }

  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
    f(first);
    for (int i = threadIdx.x + blockDim.x; i < count; i += blockDim.x) f(key(costs[i], i));
  }
};

// A block's scratch in shared memory.
struct BestScratch {
  SelectScratch select;
  unsigned counts[kMaxWarps];
  uint32_t lowest[kMaxWarps], highest[kMaxWarps];
};

// Returns the key of the n-th best candidate, or of the last if there are fewer. So the candidates whose keys
// are not below it are the best n. Returns ~0 if there is none, or if n is 0. The whole block calls it; a
// barrier must come before the scratch is used again.
template <class AnyKeys>
MICROSPEC_DEVICE uint64_t best_of(const AnyKeys& keys, unsigned n, BestScratch& scratch) {
  // The range of costs halves fewer times from the bounds found than from those of all floats.
  unsigned count = 0;
  uint32_t lowest = ~0u, highest = 0;
  keys.visit([&](uint64_t key) {
    if (key == 0) return;
    const auto cost = static_cast<uint32_t>(key >> kIndexBits);
    ++count;
    lowest = min(lowest, cost);
    highest = max(highest, cost);
  });
  count = __reduce_add_sync(kAllLanes, count);
  lowest = __reduce_min_sync(kAllLanes, lowest);
  highest = __reduce_max_sync(kAllLanes, highest);
  if (lane_index() == 0) {
    scratch.counts[warp_index()] = count;
    scratch.lowest[warp_index()] = lowest;
    scratch.highest[warp_index()] = highest;
  }
  __syncthreads();
  count = __reduce_add_sync(kAllLanes, word_of_warp(scratch.counts, 0u));
  lowest = __reduce_min_sync(kAllLanes, word_of_warp(scratch.lowest, ~uint32_t{0}));
  highest = __reduce_max_sync(kAllLanes, word_of_warp(scratch.highest, uint32_t{0}));
  if (count == 0 || n == 0) return ~uint64_t{0};
  const Bounds<uint64_t> bounds{static_cast<uint64_t>(lowest) << kIndexBits,
                                (static_cast<uint64_t>(highest) + 1) << kIndexBits};
  if (count <= n) return bounds.low;
  return block_threshold(keys, static_cast<int>(n), bounds, scratch.select).value;
}

}  // namespace microspec::tree
