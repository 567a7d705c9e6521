// SPDX-License-Identifier: Apache-2.0
// Selection in a block: block_threshold finds a threshold such that exactly n keys lie at or above it.
//
// It bisects the range of key values, not the keys: nothing is moved or sorted. A step is one compare a key,
// one reduction a warp, one __syncthreads, and one reduction over the warps. The bisection ends as soon
// as exactly n keys are at or above a probe. The gap between the n-th key and the next decides when: about
// log2(range / gap) steps. Of 3072 normal logits with the bounds of select.cu, the top 10 take 5 steps on
// average, 64 take 8, 128 take 9; 120 evictions from 3072 slots of a Zipfian stream take 11 (simulated). The
// most possible is 64.
//
// Cost of a step: 2 instructions a key (4 for 64-bit keys) and about 25 more in every warp, then the
// latencies of two reductions, the barrier, and one store and load of shared memory. Expected, not yet
// measured: 60 to 100 ns with 16 warps.
//
// Keys are uint64_t or uint32_t, and larger keys win. 0 means "no key", and no key may have all bits set.
// Keys should differ. A visitor supplies them, an object with
//   template <class F> MICROSPEC_DEVICE void visit(F&& f) const;   // f(key) for each of this thread's
// so that one algorithm serves keys in registers and keys in memory.
#pragma once

#include "block_reduce.cuh"

namespace microspec {

// A block's scratch in shared memory. At least one barrier must separate two uses.
struct SelectScratch {
  // Steps write to the two arrays by turns, so a step needs no second barrier.
  unsigned counts[2][kMaxWarps];
};

// The initial range of block_threshold: at least n keys are >= low, fewer than n are >= high.
template <class Key>
struct Bounds {
  Key low, high;
};

// A threshold. `exact`: exactly n keys are at or above it.
template <class Key>
struct Threshold {
  Key value;
  bool exact;
};

// Returns the threshold T such that exactly n keys of the block are >= T, for 1 <= n <= the number of keys.
// If it is not exact, at least n keys are >= T and fewer than n are > T: some equal T, and the caller has to
// leave some of those out. Every thread of the block gets the same T.
template <class Keys, class Key>
MICROSPEC_DEVICE Threshold<Key> block_threshold(const Keys& keys, int n, Bounds<Key> bounds,
                                                SelectScratch& scratch) {
  Key low = bounds.low, high = bounds.high;
  for (int turn = 0; high - low > 1; turn ^= 1) {
    const Key middle = low + (high - low) / 2;
    unsigned above = 0;
    keys.visit([&](Key key) { above += key >= middle; });
    above = __reduce_add_sync(kAllLanes, above);
    if (lane_index() == 0) scratch.counts[turn][warp_index()] = above;
    __syncthreads();
    above = __reduce_add_sync(kAllLanes, word_of_warp(scratch.counts[turn], 0u));
    if (above == static_cast<unsigned>(n)) return {middle, true};
    if (above > static_cast<unsigned>(n)) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return {low, false};
}

}  // namespace microspec
