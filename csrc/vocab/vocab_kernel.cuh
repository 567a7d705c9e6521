// SPDX-License-Identifier: Apache-2.0
// Exact LRU in one block per group, by the method of vocab_cpu.cpp: the most recent distinct tokens
// survive, whatever order the evictions happened in.
//
//   1. Walk the tokens from the newest back, a tile of kThreads at a time. A resident's slot and a
//      newcomer's place in a small hash table remember the largest position seen; whoever finds its
//      own position there is its token's last occurrence. Ballots rank these, newest first.
//   2. Stop when as many distinct tokens are found as there are unpinned slots.
//   3. Residents found: their stamps are refreshed. For n newcomers, a threshold over their ages
//      frees the n least recent slots; ballots rank them, and the newcomers, oldest first, move in.
//
// What decides the time of a call of one tile is the chain of dependent steps (expected, from known
// latencies on an H100, in µs): stamps, clock and token 0.7 -> the token's slot 0.6 -> four barriers
// with shared atomics 0.3 -> some eleven steps of bisection 1.0 -> rank and write 0.2 + the kernel's
// end. So: all loads of a level at once, and none in step 3, where the old ids are in registers
// already; newcomers are told apart in shared memory, not by an atomicMin on token_slots and a load of
// its outcome, two trips to L2; and no more warps than a tile needs, as every one of them issues all of
// the code between two barriers.
//
// Ladder (none of it measured yet; instructions counted in the SASS):
//   1. Ages of 64 bits in registers: 4 instructions a slot and probe.
//   2. Ages of 32 bits, and 64 from memory if a token is older than that: 2; half the registers.
//   3. The clock through shared memory, which lets the load of a token's slot go out 100 instructions
//      earlier.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "vocab/vocab_slots.cuh"
#include "vocab/vocab_walk.cuh"

namespace microspec::vocab {

// Gives the oldest `wanted` slots to the newcomers.
template <class Own>
MICROSPEC_DEVICE void seat(const Own& slots, Bounds<typename Own::Age> bounds, const Newcomer* newcomers,
                           unsigned wanted, int64_t base, Shared& shared) {
  using Age = typename Own::Age;
  const Age threshold = block_threshold(slots, static_cast<int>(wanted), bounds, shared.select);
  unsigned freed = 0;
  slots.each([&](int, Age age) { freed += __popc(__ballot_sync(kAllLanes, age >= threshold)); });
  if (lane_index() == 0) shared.slot_counts[warp_index()] = freed;
  __syncthreads();
  unsigned before = sum_of_warps(shared.slot_counts).before;
  slots.each([&](int i, Age age) {
    const bool is_freed = age >= threshold;
    const unsigned mask = __ballot_sync(kAllLanes, is_freed);
    const unsigned rank = before + __popc(mask & lanes_below());
    before += __popc(mask);
    if (!is_freed || rank >= wanted) return;
    const Group& group = slots.group;
    const int32_t old = slots.old_id(i);
    if (old >= 0 && old < group.vocab_size) group.token_slots[old] = kNone;
    // The oldest newcomer takes the lowest slot.
    const Newcomer newcomer = newcomers[wanted - 1 - rank];
    group.active_ids[slots.slot(i)] = newcomer.token;
    group.slot_stamps[slots.slot(i)] = wrapping_add(base, newcomer.position);
    group.token_slots[newcomer.token] = slots.slot(i);
  });
}

template <int slots_per_thread>
MICROSPEC_KERNEL(kThreads, 1)
vocab_update_kernel(VocabArgs args, Layout layout, int32_t* workspace) {
  MICROSPEC_SHARED(Shared, shared_storage, 1);
  MICROSPEC_DYNAMIC_SHARED(dynamic);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  Shared& shared = shared_storage[0];
  const Group group(args, blockIdx.x);
  int32_t* const last_use =
      slots_per_thread > 0 ? reinterpret_cast<int32_t*>(dynamic) : workspace + blockIdx.x * layout.words;
  Newcomer* const newcomers = reinterpret_cast<Newcomer*>(last_use + layout.newcomers);

  // First level of loads: clock, token, stamps, ids. Second: the token's slot.
  const int64_t clock = args.clock[blockIdx.x];
  Slots<slots_per_thread> slots(group);
  slots.fetch();
  Entry newest;
  newest.fetch(args, args.count - 1 - static_cast<int64_t>(threadIdx.x));
  // For the compiler, which would issue some of these loads only after the token has come.
  __syncwarp();
  const int32_t token = newest.own_token(args);
  const int32_t slot = slot_of(group, token);
  // The clock comes through shared memory, so that the ages are computed behind this barrier and not,
  // as the assembler would have it, between a token and the load of its slot.
  if (threadIdx.x == 0) shared.clock = clock;
  __syncthreads();
  const int64_t base = shared.clock;
  slots.set_clock(base);

  int oldest = 0;  // token, in short ages
  unsigned movable = 0, empty = 0;
  slots.each([&](int i, auto age) {
    if (slots.exists(i)) last_use[slots.slot(i)] = age ? kNone : kAlways;
    movable += age != 0;
    if constexpr (slots_per_thread > 0) {
      empty += static_cast<int>(age) < 0;
      oldest = max(oldest, static_cast<int>(age));
    }
  });
  // Both counts in one word: with the ages in registers there are fewer than 2^16 slots.
  movable = __reduce_add_sync(kAllLanes, movable | empty << 16);
  oldest = __reduce_max_sync(kAllLanes, oldest);
  if (lane_index() == 0) {
    shared.slot_counts[warp_index()] = movable;
    shared.warp_oldest[warp_index()] = oldest;
  }
  clear_table(shared);
  prepare_select(shared.select);
  __syncthreads();
  if (threadIdx.x == 0) args.clock[blockIdx.x] = wrapping_add(base, args.count);
  const unsigned counts = sum_of_warps(shared.slot_counts).total;
  const unsigned room = slots_per_thread > 0 ? counts & 0xffff : counts;
  if (room == 0) return;

  walk(args, group, shared, last_use, newcomers, room, token, slot);
  __syncthreads();
  const int32_t cutoff = shared.cutoff;
  const unsigned wanted = shared.newcomers;
#pragma unroll
  for (int i = 0; i < slots.per_thread(); ++i) {
    const int32_t use = slots.exists(i) ? last_use[slots.slot(i)] : kAlways;
    if (use != kAlways && use >= cutoff) {
      group.slot_stamps[slots.slot(i)] = wrapping_add(base, use);
      slots.refresh(i);
    }
    if constexpr (slots_per_thread > 16) {
      if (i % 8 == 7) __syncwarp();  // as in set_clock
    }
  }
  // At most room - wanted slots have been refreshed, so there are enough left.
  if (wanted == 0) return;
  if constexpr (slots_per_thread > 0) {
    oldest = __reduce_max_sync(kAllLanes, word_of_warp(shared.warp_oldest, 0));
    if (oldest < kTooOld) {
      const uint32_t all_empty = ~static_cast<uint32_t>(group.capacity);
      const Bounds<uint32_t> bounds = counts >> 16 >= wanted
                                          ? Bounds<uint32_t>{all_empty, ~0u}
                                          : Bounds<uint32_t>{1, static_cast<uint32_t>(oldest) + 1};
      seat(slots, bounds, newcomers, wanted, base, shared);
      return;
    }
  }
  // These slots are not dealt out as those were: the stamps just refreshed may be other threads'.
  __syncthreads();
  Slots<0> any(group);
  any.set_clock(base);
  const uint64_t beyond = static_cast<uint64_t>(base) + static_cast<uint64_t>(group.capacity) + 1;
  seat(any, KeyBounds{1, beyond}, newcomers, wanted, base, shared);
}

}  // namespace microspec::vocab
