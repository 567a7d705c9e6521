// SPDX-License-Identifier: Apache-2.0
// Selection in a block: block_threshold finds a threshold such that exactly n keys lie at or above it.
//
// It bisects the range of key values, not the keys: nothing is moved or sorted. A step is one compare a key,
// one warp reduction, one add to a counter in shared memory and one __syncthreads. The bisection ends as soon
// as exactly n keys are at or above a probe. The gap between the n-th key and the next decides when: about
// log2(range / gap) steps. Of 3072 normal logits with the bounds below, the top 10 take 5 steps on average,
// 64 take 8, 128 take 9; 120 evictions from 3072 slots of a Zipfian stream take 11 (simulated). The most
// possible is 64.
//
// Cost of a step: 2 instructions a key (4 for 64-bit keys) and about 30 more in every warp, then the
// latencies of the reduction, the shared add, the barrier and one shared load. Expected, not yet measured: 60
// to 100 ns with 16 warps.
//
// Keys are uint64_t or uint32_t, and larger keys win. 0 means "no key", and no key may have all bits set.
// Keys should differ. A visitor supplies them, an object with
//   template <class F> MICROSPEC_DEVICE void visit(F&& f) const;   // f(key) for each of this thread's
// so that one algorithm serves keys in registers and keys in memory.
#pragma once

#include "block_reduce.cuh"

namespace microspec {

// `count` keys a thread, in registers. `count` is a constant, so every loop over the keys is unrolled.
template <int count, class Key = uint64_t>
struct RegisterKeys {
  Key key[count];

  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
#pragma unroll
    for (int i = 0; i < count; ++i) f(key[i]);
  }
};

// A block's scratch in shared memory. At least one barrier must separate two uses.
struct SelectScratch {
  // One counter is added to, one is read and one is cleared, so a step needs no second barrier.
  unsigned counters[3];
  uint32_t warp_best[kMaxWarps];   // largest high word in each warp
  uint32_t warp_floor[kMaxWarps];  // smallest of the segments' largest, in each warp
};

// The initial range of block_threshold: at least n keys are >= low, fewer than n are >= high.
template <class Key>
struct Bounds {
  Key low, high;
};
using KeyBounds = Bounds<uint64_t>;

// Prepares the scratch for block_threshold. A barrier must follow before that call.
MICROSPEC_DEVICE void prepare_select(SelectScratch& scratch) {
  if (threadIdx.x == 0) scratch.counters[0] = 0;
}

// Returns bounds computed from the high words, for keys whose high words spread (a float above an id).
// Divides the block into at least n segments of up to 32 lanes. Each segment has a largest key, so n keys are
// at or above the smallest of those. That leaves out the sparse lower tail, in which a bisection over floats
// would spend most of its steps. If n exceeds the number of threads, or a segment has no keys, low is 1:
// every key. Also prepares the scratch. Contains one barrier.
template <class Keys>
MICROSPEC_DEVICE KeyBounds block_key_bounds(const Keys& keys, int n, SelectScratch& scratch) {
  const int threads = static_cast<int>(blockDim.x);
  uint32_t best = 0;
  keys.visit([&](uint64_t key) {
    const uint32_t high = static_cast<uint32_t>(key >> 32);
    best = high > best ? high : best;
  });
  uint32_t segment = best;
  if (threads / kWarp >= n) {
    segment = __reduce_max_sync(kAllLanes, best);
  } else {
    for (int width = 2; width < kWarp && threads / width >= n; width *= 2) {
      const uint32_t other = __shfl_xor_sync(kAllLanes, segment, width / 2);
      segment = other > segment ? other : segment;
    }
  }
  best = __reduce_max_sync(kAllLanes, best);
  segment = __reduce_min_sync(kAllLanes, segment);
  if (lane_index() == 0) {
    scratch.warp_best[warp_index()] = best;
    scratch.warp_floor[warp_index()] = segment;
  }
  prepare_select(scratch);
  __syncthreads();
  best = __reduce_max_sync(kAllLanes, word_of_warp(scratch.warp_best, 0u));
  segment = __reduce_min_sync(kAllLanes, word_of_warp(scratch.warp_floor, ~0u));
  const uint64_t low = static_cast<uint64_t>(threads >= n ? segment : 0u) << 32;
  const uint64_t last = static_cast<uint64_t>(best) << 32 | 0xffffffffu;
  return {low > 1 ? low : 1, last + 1 > last ? last + 1 : last};
}

// Returns the threshold T such that exactly n keys of the block are >= T, for 1 <= n <= the number of keys.
// If keys are equal, such a T may not exist. Then more than n keys are >= T and fewer than n are > T, and the
// caller has to leave some out. Every thread of the block gets the same T.
template <class Keys, class Key>
MICROSPEC_DEVICE Key block_threshold(const Keys& keys, int n, Bounds<Key> bounds, SelectScratch& scratch) {
  Key low = bounds.low, high = bounds.high;
  for (int counter = 0; high - low > 1;) {
    const Key middle = low + (high - low) / 2;
    unsigned above = 0;
    keys.visit([&](Key key) { above += key >= middle; });
    above = __reduce_add_sync(kAllLanes, above);
    const int next = counter == 2 ? 0 : counter + 1;
    if (lane_index() == 0) atomicAdd(&scratch.counters[counter], above);
    // This counter was last read in the step before the previous one, so no thread reads it now.
    if (threadIdx.x == 0) scratch.counters[next] = 0;
    __syncthreads();
    above = scratch.counters[counter];
    if (above == static_cast<unsigned>(n)) return middle;
    if (above > static_cast<unsigned>(n)) {
      low = middle;
    } else {
      high = middle;
    }
    counter = next;
  }
  return low;
}

}  // namespace microspec
