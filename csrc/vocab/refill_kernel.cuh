// SPDX-License-Identifier: Apache-2.0
// The two kernels of vocab_refill_; refill_stamps_kernel.cuh has the second.
//
// refill_kernel, one block a group:
//   0. Count the closed slots, which stay as they are: n is at most the number of the others.
//   1. Find the place of the n-th token in the order (refill_select.cuh). One sweep over the list's counts
//      tells its count. Mostly other tokens have the same count: one sweep over their totals and two over
//      their ranks follow, unless all tokens of a bin are wanted.
//   2. Sweep once more and mark the wanted tokens in a bitmap [V]. The slots then take their tokens out of
//      it: what is left are the newcomers, and a prefix sum over the words lists them by id.
//   3. Without reset: tokens that lose their pin take the stamps from 0 on, and all others move up.
//   4. Mark the slots to free: all that are not kept, or the least recently used. A prefix sum over their
//      words gives each its newcomer.
// refill_stamps_kernel, after a reset, over all slots of all groups: a token's position in the order is the
// number of tokens that come before it. Counting takes K^2 compares, but these spread over the GPU, where
// sorting would take one block some fifty barriers.
//
// Bytes: a sweep reads 4 V (12 V where counts are tied). At V = 262144 an SM reads 1 MiB in about 12 us at
// 64 bytes a clock, and its 4 schedulers issue the 10 instructions of a token and sweep in about the same
// time. So expected, not measured on a GPU, with K = 3072: 50 to 90 us, of which the steps over slots take
// ten; 150 us at the very first refill, as all tokens are tied. refill_stamps_kernel takes 8 instructions a
// compare: 5 us at K = 3072, 0.25 ms at K = 32768. A refill runs at a request's begin on a side stream, not
// in a step.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "vocab/refill_select.cuh"

namespace microspec::refill {

// Calls f(i, rank) for each member, the smallest with rank 0. Returns how many there are. `before` is
// the bitmap's second array. The whole block calls this, after a barrier.
template <class F>
MICROSPEC_DEVICE unsigned each_member(const Bitmap& bitmap, BlockState& block, F&& f) {
  uint32_t* const before = bitmap.words + bitmap.num_words();
  // A thread's words are contiguous here, and a warp's word is one below.
  const int count = (bitmap.num_words() + kThreads - 1) / kThreads;
  const int first = min(static_cast<int>(threadIdx.x) * count, bitmap.num_words());
  const int end = min(first + count, bitmap.num_words());
  unsigned members = 0;
  for (int word = first; word < end; ++word) members += __popc(bitmap.words[word]);
  const Prefix prefix = sum_of_threads(members, block);
  unsigned sum = prefix.before;
  for (int word = first; word < end; ++word) {
    before[word] = sum;
    sum += __popc(bitmap.words[word]);
  }
  __syncthreads();
  for (int word = warp_index(); word < bitmap.num_words(); word += kWarps) {
    const uint32_t bits = bitmap.words[word];
    if (bits >> lane_index() & 1) f(word * kWarp + lane_index(), before[word] + __popc(bits & lanes_below()));
  }
  return prefix.total;
}

// ---- Step 0
//
// Counts the closed slots, and returns how many tokens are wanted of those in `most`. The whole block calls
// this.
MICROSPEC_DEVICE unsigned wanted_of(const Group& group, int64_t most, BlockState& block) {
  unsigned closed = 0;
  group.each_slot([&](int slot) { closed += slot < group.capacity && group.is_closed(slot); });
  closed = sum_of_threads(closed, block).total;
  const unsigned count = min(static_cast<unsigned>(most), static_cast<unsigned>(group.capacity) - closed);
  if (threadIdx.x == 0) {
    *group.count = count;
    block.closed = closed;
  }
  __syncthreads();
  return count;
}

// ---- Step 2
//
// Marks the wanted tokens. A barrier must follow.
MICROSPEC_DEVICE void mark_wanted(const Group& group, const Order& order, const Place& last) {
  order.sweep(static_cast<uint32_t>(last.counts >> 32),
              [&](int token, uint32_t count, uint32_t total, uint32_t rank) {
                const Place place = place_of(count, total, rank, static_cast<uint32_t>(token));
                group.wanted.write(token, token < group.vocab_size && !last.comes_before(place));
              });
}

// Takes the tokens that have a slot out of the wanted ones, and keeps their slots and the closed ones. A slot
// and token_slots must agree that the slot holds its token. A barrier must follow.
MICROSPEC_DEVICE void keep_slots(const Group& group) {
  group.each_slot([&](int slot) {
    const int32_t token = slot < group.capacity ? group.active_ids[slot] : kNone;
    const bool is_held = token >= 0 && token < group.vocab_size && group.token_slots[token] == slot;
    bool is_kept = slot < group.capacity && group.is_closed(slot);
    if (is_held) {
      const unsigned bit = 1u << token % kWarp;
      is_kept = atomicAnd(&group.wanted.words[token / kWarp], ~bit) & bit;
    }
    group.held.write(slot, is_held);
    group.kept.write(slot, is_kept);
  });
}

// ---- Step 3
//
// Makes the tokens that lost their pin the least recently used, in the order of their slots, and pins the
// kept ones. A barrier must follow.
MICROSPEC_DEVICE void move_stamps(const Group& group, BlockState& block) {
  group.each_slot([&](int slot) {
    group.chosen.write(
        slot, slot < group.capacity && group.slot_stamps[slot] == kPinnedStamp && !group.kept.has(slot));
  });
  __syncthreads();
  const int64_t unpinned = each_member(group.chosen, block, [&](int slot, unsigned rank) {
    group.slot_stamps[slot] = static_cast<int64_t>(rank);
  });
  group.each_slot([&](int slot) {
    if (slot >= group.capacity || group.chosen.has(slot)) return;
    const int64_t stamp = group.slot_stamps[slot];
    if (group.kept.has(slot)) {
      group.slot_stamps[slot] = kPinnedStamp;
    } else if (stamp >= 0) {
      group.slot_stamps[slot] = min(wrapping_add(stamp, unpinned), kPinnedStamp - 1);
    }
  });
  if (threadIdx.x == 0) *group.clock = wrapping_add(*group.clock, unpinned);
}

// ---- Step 4
//
// Marks the slots that newcomers take. A barrier must follow.
MICROSPEC_DEVICE void mark_free(const Group& group, bool reset, unsigned kept, unsigned newcomers,
                                BlockState& block) {
  Age last{~uint64_t{0}, ~0u};
  if (!reset) last = last_freed(group, static_cast<unsigned>(group.capacity) - kept, newcomers, block);
  group.each_slot([&](int slot) {
    bool is_free = slot < group.capacity && !group.kept.has(slot);
    if (is_free && !reset) {
      const uint64_t stamp = unsigned_stamp(group.slot_stamps[slot]);
      is_free = stamp < last.stamp || (stamp == last.stamp && static_cast<uint32_t>(slot) <= last.slot);
    }
    group.chosen.write(slot, is_free);
  });
}

// Gives the marked slots to the newcomers, both ascending, and empties those that are left. A barrier must
// follow.
MICROSPEC_DEVICE void place_newcomers(const Group& group, bool reset, unsigned newcomers, BlockState& block) {
  each_member(group.chosen, block, [&](int slot, unsigned rank) {
    // The token that leaves is not wanted, so no thread writes its slot besides this one.
    if (group.held.has(slot)) group.token_slots[group.active_ids[slot]] = kNone;
    const int32_t token = rank < newcomers ? group.newcomers[rank] : kNone;
    group.active_ids[slot] = token;
    group.slot_stamps[slot] = reset ? kEmptyStamp : kPinnedStamp;
    if (token >= 0) group.token_slots[token] = slot;
  });
}

MICROSPEC_KERNEL(kThreads, 1) refill_kernel(RefillArgs args, Layout layout, uint32_t* workspace) {
  MICROSPEC_SHARED(BlockState, block_storage, 1);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  BlockState& block = block_storage[0];
  const int64_t list = list_of(args, blockIdx.x);
  if (list < 0) return;
  const Group group(args, layout, workspace, blockIdx.x);
  const Order order(args, list);
  const bool reset = args.reset;
  const unsigned count = wanted_of(group, min(args.vocab_size, reset ? args.capacity : args.pinned), block);

  mark_wanted(group, order, last_wanted(order, count, block));
  __syncthreads();
  keep_slots(group);
  __syncthreads();
  const unsigned newcomers =
      each_member(group.wanted, block, [&](int token, unsigned rank) { group.newcomers[rank] = token; });
  __syncthreads();
  if (!reset) {
    move_stamps(group, block);
    __syncthreads();
    if (newcomers == 0) return;
  }
  mark_free(group, reset, block.closed + count - newcomers, newcomers, block);
  __syncthreads();
  place_newcomers(group, reset, newcomers, block);
  if (!reset) return;
  __syncthreads();
  group.each_slot([&](int slot) {
    if (slot >= group.capacity) return;
    const int32_t token = group.active_ids[slot];
    group.places[slot] = token >= 0 ? order.place(token) : Place{0, 0};
  });
  if (threadIdx.x == 0) *group.clock = max(int64_t{count} - args.pinned, int64_t{0});
}

}  // namespace microspec::refill
