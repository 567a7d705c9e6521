// SPDX-License-Identifier: Apache-2.0
// The walk over a call's tokens, newest first. It finds the residents to refresh and the newcomers.
//
//     position   N - 1 … N - kThreads    N - 1 - kThreads … N - 2 kThreads    …
//     thread     0 … kThreads - 1        0 … kThreads - 1                     …
//     tile       first                   second                               …
#pragma once

#include "vocab/vocab_state.cuh"

namespace microspec::vocab {

// ---- Loading tokens
//
// The words of an int32 or int64. The high word of a non-negative int32 is 0, and negative values are not
// needed. So an Integer can be fetched without a branch or a wait.
struct Integer {
  int32_t low = kNone, high = 0;

  MICROSPEC_DEVICE void fetch(const void* data, bool is_long, int64_t index) {
    const int32_t* const words = static_cast<const int32_t*>(data);
    low = words[is_long ? 2 * index : index];
    if (is_long) high = words[2 * index + 1];
  }
};

// The token and group at one position, possibly still in flight.
struct TokenAt {
  Integer token, group;

  MICROSPEC_DEVICE void fetch(const VocabArgs& args, int64_t position) {
    token = group = Integer{};
    if (position < 0) return;
    const int64_t row = args.token_groups ? 0 : blockIdx.x * args.count;
    token.fetch(args.tokens, args.long_tokens, row + position);
    if (args.token_groups) group.fetch(args.token_groups, args.long_groups, position);
  }
  // Returns the token if it is valid and belongs to this block's group, else kNone.
  MICROSPEC_DEVICE int32_t token_of_group(const VocabArgs& args) const {
    const bool in_group =
        !args.token_groups || (group.low == static_cast<int32_t>(blockIdx.x) && group.high == 0);
    const bool exists = token.low >= 0 && token.low < args.vocab_size && token.high == 0;
    return in_group && exists ? token.low : kNone;
  }
};

// Returns the token's slot, kPending, or kNone if it has no slot.
MICROSPEC_DEVICE int32_t slot_of(const Group& group, int32_t token) {
  if (token == kNone) return kNone;
  const int32_t slot = group.token_slots[token];
  return slot < group.capacity && slot >= kPending ? slot : kNone;
}

// ---- The table of newcomers
//
// Empties the table. A barrier must follow.
MICROSPEC_DEVICE void clear_table(BlockState& block) {
#pragma unroll
  for (int i = 0; i < kTable; i += kThreads) {
    block.table_tokens[i + threadIdx.x] = kNone;
    block.table_positions[i + threadIdx.x] = kNone;
  }
}

// Records a newcomer and returns its place in the table.
MICROSPEC_DEVICE int note_newcomer(BlockState& block, int32_t token, int32_t position) {
  // Multiplicative hashing: the top bits of the product depend on all bits of the token.
  int place = static_cast<int>(static_cast<uint32_t>(token) * 0x9e3779b1u >> (32 - kTableBits));
  while (true) {
    const int32_t before = atomicCAS(&block.table_tokens[place], kNone, token);
    if (before == kNone || before == token) break;
    place = (place + 1) % kTable;
  }
  atomicMax(&block.table_positions[place], position);
  return place;
}

// ---- Steps 1 and 2
//
// Walks over the tokens. Fills `newcomers`, newest first, and last_use. Sets block.cutoff and
// block.newcomers, which are valid after the next barrier. `token` is the thread's token in the first tile,
// and `slot` is that token's slot.
MICROSPEC_DEVICE void walk(const VocabArgs& args, const Group& group, BlockState& block, int32_t* last_use,
                           Newcomer* newcomers, unsigned room, int32_t token, int32_t slot) {
  unsigned distinct = 0, recorded = 0;
  int64_t position = args.count - 1 - static_cast<int64_t>(threadIdx.x);
  for (int64_t left = args.count - kThreads;; left -= kThreads) {
    TokenAt next;
    next.fetch(args, position - kThreads);
    const int32_t use = static_cast<int32_t>(position);
    int place = kNone;
    if (slot >= 0) {
      atomicMax(&last_use[slot], use);
    } else if (token != kNone && slot != kPending) {
      place = note_newcomer(block, token, use);
    }
    // Most tiles of a ragged batch hold only other groups' tokens.
    if (__syncthreads_or(token != kNone)) {
      // A pinned slot's last use (kPinnedUse) equals no position. A last use from a newer tile equals no
      // position of this tile.
      const bool is_resident = slot >= 0 && last_use[slot] == use;
      const bool is_newcomer = place >= 0 && block.table_positions[place] == use;
      const unsigned found = __ballot_sync(kAllLanes, is_resident || is_newcomer);
      const unsigned fresh = __ballot_sync(kAllLanes, is_newcomer);
      // Both counts fit one word: each is at most kThreads.
      if (lane_index() == 0) block.tile_counts[warp_index()] = __popc(found) | __popc(fresh) << 16;
      __syncthreads();
      const Prefix counts = sum_of_warps(block.tile_counts);
      const unsigned rank = distinct + (counts.before & 0xffff) + __popc(found & lanes_below());
      const unsigned index = recorded + (counts.before >> 16) + __popc(fresh & lanes_below());
      distinct += counts.total & 0xffff;
      recorded += counts.total >> 16;
      const bool is_last = left <= 0 || distinct >= room;
      if (is_newcomer && rank < room) {
        newcomers[index] = {token, use};
        if (!is_last) group.token_slots[token] = kPending;
      }
      if ((is_resident || is_newcomer) && rank + 1 == room) {
        block.cutoff = use;
        block.newcomers = index + is_newcomer;
      }
      if (is_last) break;
      clear_table(block);
      __syncthreads();
    }
    if (left <= 0) break;
    position -= kThreads;
    token = next.token_of_group(args);
    slot = slot_of(group, token);
  }
  if (threadIdx.x == 0 && distinct < room) {
    block.cutoff = 0;
    block.newcomers = recorded;
  }
}

}  // namespace microspec::vocab
