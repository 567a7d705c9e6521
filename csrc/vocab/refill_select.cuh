// SPDX-License-Identifier: Apache-2.0
// Selection of the n-th of many 32-bit values by histograms in shared memory.
//
// block_threshold (block_select.cuh) bisects keys that lie in registers. Here a sweep over all V tokens comes
// from memory, so a pass must decide more than one bit: it counts the values of the range in kBins bins, and
// the bin of the n-th value becomes the next range. The last bin takes everything above the others. So a
// caller that expects small values gives a first shift of 0, and one pass suffices if it is right; a wrong
// guess costs a pass, and three more decide all 32 bits. It ends early if all of a bin is wanted.
//
// The lowest bin is not counted but inferred from the number of candidates: most counts are 0, and 32 atomics
// of a warp on one word would take turns.
#pragma once

#include "vocab/refill_state.cuh"

namespace microspec::refill {

// The values in [first, last] among which the n-th lies: `candidates` of them, of which the first `wanted` in
// the order are wanted, at least one.
struct Range {
  uint32_t first, last;
  unsigned candidates, wanted;

  // Whether no value of the range has to be left out.
  MICROSPEC_DEVICE bool is_wanted() const { return wanted == candidates; }
};

// Returns how far to shift values of [0, largest] so that they fit the bins.
MICROSPEC_DEVICE int shift_of(uint32_t largest) {
  return max(0, kWarp - __clz(static_cast<int>(largest)) - __ffs(kBins) + 1);
}

// Returns the sum over the threads before this one, and over all. One barrier; another must follow before
// the next call.
MICROSPEC_DEVICE Prefix sum_of_threads(unsigned value, BlockState& block) {
  unsigned sum = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane_index() >= distance) sum += other;
  }
  if (lane_index() == kWarp - 1) block.warp_sums[warp_index()] = sum;
  __syncthreads();
  const Prefix warps = sum_of_warps(block.warp_sums);
  return {warps.before + sum - value, warps.total};
}

// Narrows the range to the value of the n-th candidate, or until all of it is wanted. `descending`: the
// largest values come first. values(f) calls f(value) for each of this thread's candidates, the same in every
// pass. All threads get the same result.
template <bool descending, class Values>
MICROSPEC_DEVICE Range choose(const Values& values, unsigned candidates, unsigned wanted, int shift,
                              BlockState& block) {
  Range range{0, ~0u, candidates, wanted};
  while (range.first != range.last && !range.is_wanted()) {
    block.bins[threadIdx.x] = block.bins[kThreads + threadIdx.x] = 0;
    __syncthreads();
    values([&](uint32_t value) {
      if (value < range.first || value > range.last) return;
      const uint32_t digit = min((value - range.first) >> shift, uint32_t{kBins - 1});
      if (digit > 0) atomicAdd(&block.bins[digit], 1u);
    });
    __syncthreads();
    // Two bins a thread, in the order of their values.
    const unsigned place = descending ? kBins - 1 - 2 * threadIdx.x : 2 * threadIdx.x;
    const unsigned next = descending ? place - 1 : place + 1;
    unsigned here = block.bins[place], there = block.bins[next];
    const Prefix prefix = sum_of_threads(here + there, block);
    const unsigned lowest = range.candidates - prefix.total;
    unsigned before = prefix.before;
    if (place == 0) {
      here = lowest;
    } else if (!descending) {
      before += lowest;
    }
    if (next == 0) there = lowest;
    const bool is_here = before < range.wanted && range.wanted <= before + here;
    const bool is_there = before + here < range.wanted && range.wanted <= before + here + there;
    if (is_here || is_there) {
      block.digit = is_here ? place : next;
      block.before = is_here ? before : before + here;
      block.count = is_here ? here : there;
    }
    __syncthreads();
    const unsigned digit = block.digit;
    range.wanted -= block.before;
    range.candidates = block.count;
    range.first += digit << shift;
    if (digit < kBins - 1) {
      const uint32_t width = (1u << shift) - 1;
      range.last = min(range.last - range.first, width) + range.first;
    }
    shift = shift_of(range.last - range.first);
  }
  return range;
}

// ---- The wanted tokens: the first n of the order
//
// Returns the place of the n-th token, which is wanted as are all before it. Where all tokens of a count are
// wanted the rest of the place is the last there can be.
MICROSPEC_DEVICE Place last_wanted(const Order& order, unsigned n, BlockState& block) {
  constexpr uint32_t kLast = ~0u;
  const auto vocab_size = static_cast<uint32_t>(order.vocab_size);
  if (n == 0) return {~uint64_t{0}, ~uint64_t{0}};
  const auto each = [&](const auto& f) {
    order.sweep(kLast, [&](int token, uint32_t count, uint32_t, uint32_t) {
      if (token < order.vocab_size) f(count);
    });
  };
  Range range = choose<true>(each, vocab_size, n, 0, block);
  const uint32_t count = range.first;
  if (range.is_wanted()) return place_of(count, 0, kLast, kLast);
  const auto tied = [&](const auto& f) {
    order.sweep(count, [&](int token, uint32_t value, uint32_t total, uint32_t rank) {
      if (value == count) f(static_cast<uint32_t>(token), total, rank);
    });
  };
  uint32_t total = 0;
  if (order.totals) {
    const auto totals = [&](const auto& f) { tied([&](uint32_t, uint32_t value, uint32_t) { f(value); }); };
    range = choose<true>(totals, range.candidates, range.wanted, 0, block);
    total = range.first;
    if (range.is_wanted()) return place_of(count, total, kLast, kLast);
  }
  const int shift = shift_of(vocab_size - 1);
  const auto ranks = [&](const auto& f) {
    tied([&](uint32_t, uint32_t value, uint32_t rank) {
      if (value == total) f(rank);
    });
  };
  range = choose<false>(ranks, range.candidates, range.wanted, shift, block);
  const uint32_t last_rank = range.last;
  if (range.is_wanted()) return place_of(count, total, last_rank, kLast);
  const auto ids = [&](const auto& f) {
    tied([&](uint32_t token, uint32_t value, uint32_t rank) {
      if (value == total && rank == last_rank) f(token);
    });
  };
  range = choose<false>(ids, range.candidates, range.wanted, shift, block);
  return place_of(count, total, last_rank, range.last);
}

// ---- The slots to free: the n least recently used
//
// A slot's place in the order of (stamp, slot), with the stamp's sign bit flipped: the smaller comes first.
struct Age {
  uint64_t stamp;
  uint32_t slot;
};

MICROSPEC_DEVICE uint64_t unsigned_stamp(int64_t stamp) {
  return static_cast<uint64_t>(stamp) ^ uint64_t { 1 } << 63;
}

// Returns the n-th slot in the order of (stamp, slot) among `candidates` slots that are not kept, n >= 1.
MICROSPEC_DEVICE Age last_freed(const Group& group, unsigned candidates, unsigned n, BlockState& block) {
  constexpr uint32_t kLast = ~0u;
  const auto each = [&](const auto& f) {
    group.each_slot([&](int slot) {
      if (slot < group.capacity && !group.kept.has(slot)) f(slot, unsigned_stamp(group.slot_stamps[slot]));
    });
  };
  const auto highs = [&](const auto& f) {
    each([&](int, uint64_t stamp) { f(static_cast<uint32_t>(stamp >> 32)); });
  };
  const int shift = shift_of(kLast);
  Range range = choose<false>(highs, candidates, n, shift, block);
  const uint32_t high = range.last;
  if (range.is_wanted()) return {pair(high, kLast), kLast};
  const auto lows = [&](const auto& f) {
    each([&](int, uint64_t stamp) {
      if (stamp >> 32 == high) f(static_cast<uint32_t>(stamp));
    });
  };
  range = choose<false>(lows, range.candidates, range.wanted, shift, block);
  const uint64_t last_stamp = pair(high, range.last);
  if (range.is_wanted()) return {last_stamp, kLast};
  const auto slots = [&](const auto& f) {
    each([&](int slot, uint64_t stamp) {
      if (stamp == last_stamp) f(static_cast<uint32_t>(slot));
    });
  };
  range = choose<false>(slots, range.candidates, range.wanted, shift_of(group.capacity - 1), block);
  return {last_stamp, range.last};
}

}  // namespace microspec::refill
