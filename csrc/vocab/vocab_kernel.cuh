// SPDX-License-Identifier: Apache-2.0
// vocab_update_kernel computes exact LRU with one block per group, by the method of vocab_cpu.cpp. The most
// recent distinct tokens survive, in whatever order the evictions happened.
//
//   1. Walk the tokens from the newest back, a tile of kThreads at a time. A resident's slot, or a
//      newcomer's place in a small hash table, stores the largest position seen. A thread that finds its
//      own position there has its token's last occurrence. Ballots rank these tokens, newest first.
//   2. Stop when as many distinct tokens are found as there are unpinned slots.
//   3. Refresh the stamps of the residents found. For n newcomers, a threshold over the ages frees the n
//      least recent slots. Ballots rank the freed slots, and the newcomers, oldest first, take them.
//
// The chain of dependent steps decides the time of a call of one tile (expected, from known latencies on an
// H100, in µs): stamps, clock and token 0.7 -> the token's slot 0.6 -> four barriers with shared atomics 0.3
// -> about eleven steps of bisection 1.0 -> rank and write 0.2 + the kernel's end. Hence:
// - All loads of a level are issued at once. Step 3 issues none, because the old ids are already in
//   registers.
// - Newcomers are told apart in shared memory. An atomicMin on token_slots and a load of its result would
//   take two trips to L2.
// - A block has no more warps than a tile needs, because every warp issues all of the code between two
//   barriers.
// - Ages are 32 bits in registers, and 64 bits from memory only if a token is too old or the capacity too
//   large. 32 bits take 2 instructions a slot and probe instead of 4 (counted in the SASS), and half the
//   registers.
// - The clock goes through shared memory. So the load of a token's slot is issued 100 instructions earlier
//   (counted in the SASS).
//
// Not yet measured on a GPU.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "vocab/vocab_slots.cuh"
#include "vocab/vocab_walk.cuh"

namespace microspec::vocab {

// ---- Step 3, second half: give the oldest `wanted` slots to the newcomers
template <class AnySlots>
MICROSPEC_DEVICE void place_newcomers(const AnySlots& slots, Bounds<typename AnySlots::Age> bounds,
                                      const Newcomer* newcomers, unsigned wanted, int64_t base,
                                      BlockState& block) {
  using Age = typename AnySlots::Age;
  const Age threshold = block_threshold(slots, static_cast<int>(wanted), bounds, block.select).value;
  unsigned freed = 0;
  slots.each([&](int, Age age) { freed += __popc(__ballot_sync(kAllLanes, age >= threshold)); });
  if (lane_index() == 0) block.slot_counts[warp_index()] = freed;
  __syncthreads();
  unsigned before = sum_of_warps(block.slot_counts).before;
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

// ---- The kernel: steps 1 to 3
//
// slots_per_thread is 0 if the slots' ages do not fit in registers, or the layout not in shared memory.
template <int slots_per_thread>
MICROSPEC_KERNEL(kThreads, 1)
vocab_update_kernel(VocabArgs args, TokenGroups groups, Layout layout, int32_t* workspace) {
  MICROSPEC_SHARED(BlockState, block_storage, 1);
  MICROSPEC_DYNAMIC_SHARED(dynamic);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  BlockState& block = block_storage[0];
  const Group group(args, blockIdx.x);
  int32_t* const last_use =
      slots_per_thread > 0 ? reinterpret_cast<int32_t*>(dynamic) : workspace + blockIdx.x * layout.words;
  Newcomer* const newcomers = reinterpret_cast<Newcomer*>(last_use + layout.newcomers);

  // First level of loads: clock, token, stamps and ids. Second level: the token's slot.
  const int64_t clock = args.clock[blockIdx.x];
  Slots<slots_per_thread> slots(group);
  slots.fetch();
  Feed feed(args, groups, block, last_use + layout.queue);
  int64_t position;
  feed.next(position);
  TokenAt newest;
  newest.fetch(args, position);
  // Without this, the compiler would issue some of these loads only after the token has arrived.
  __syncwarp();
  const int32_t token = newest.token(args);
  const int32_t slot = slot_of(group, token);
  // Pass the clock through shared memory, so that the ages are computed after this barrier. The assembler
  // would otherwise compute them between a token and the load of its slot.
  if (threadIdx.x == 0) block.clock = clock;
  __syncthreads();
  const int64_t base = block.clock;
  slots.set_clock(base);

  int oldest = 0;  // the oldest token's age, among short ages
  unsigned movable = 0, empty = 0;
  slots.each([&](int i, auto age) {
    if (slots.exists(i)) last_use[slots.slot(i)] = age ? kNone : kPinnedUse;
    movable += age != 0;
    if constexpr (slots_per_thread > 0) {
      empty += static_cast<int>(age) < 0;
      oldest = max(oldest, static_cast<int>(age));
    }
  });
  // Both counts fit one word: with the ages in registers there are fewer than 2^16 slots.
  movable = __reduce_add_sync(kAllLanes, movable | empty << 16);
  oldest = __reduce_max_sync(kAllLanes, oldest);
  if (lane_index() == 0) {
    block.slot_counts[warp_index()] = movable;
    block.warp_oldest[warp_index()] = oldest;
  }
  clear_table(block);
  __syncthreads();
  if (threadIdx.x == 0) args.clock[blockIdx.x] = wrapping_add(base, args.count);
  const unsigned counts = sum_of_warps(block.slot_counts).total;
  const unsigned room = slots_per_thread > 0 ? counts & 0xffff : counts;
  if (room == 0) return;

  walk(args, group, block, last_use, newcomers, room, feed, position, token, slot);
  __syncthreads();
  const int32_t cutoff = block.cutoff;
  const unsigned wanted = block.newcomers;
#pragma unroll
  for (int i = 0; i < slots.per_thread(); ++i) {
    const int32_t use = slots.exists(i) ? last_use[slots.slot(i)] : kPinnedUse;
    if (use != kPinnedUse && use >= cutoff) {
      group.slot_stamps[slots.slot(i)] = wrapping_add(base, use);
      slots.refresh(i);
    }
    if constexpr (slots_per_thread > 16) {
      if (i % 8 == 7) __syncwarp();  // limits the loads in flight, as in set_clock
    }
  }
  // At most room - wanted slots have been refreshed, so at least `wanted` slots are left.
  if (wanted == 0) return;
  if constexpr (slots_per_thread > 0) {
    oldest = __reduce_max_sync(kAllLanes, word_of_warp(block.warp_oldest, 0));
    if (oldest < kTooOld) {
      const uint32_t all_empty = ~static_cast<uint32_t>(group.capacity);
      const Bounds<uint32_t> bounds = counts >> 16 >= wanted
                                          ? Bounds<uint32_t>{all_empty, ~0u}
                                          : Bounds<uint32_t>{1, static_cast<uint32_t>(oldest) + 1};
      place_newcomers(slots, bounds, newcomers, wanted, base, block);
      return;
    }
  }
  // Slots<0> assigns slots to threads differently, so another thread may have refreshed a stamp we read:
  // hence the barrier.
  __syncthreads();
  Slots<0> any(group);
  any.set_clock(base);
  const uint64_t beyond = static_cast<uint64_t>(base) + static_cast<uint64_t>(group.capacity) + 1;
  place_newcomers(any, Bounds<uint64_t>{1, beyond}, newcomers, wanted, base, block);
}

}  // namespace microspec::vocab
