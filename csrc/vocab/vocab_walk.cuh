// SPDX-License-Identifier: Apache-2.0
// The walk over a call's tokens, newest first. It finds the residents to refresh and the newcomers.
#pragma once

#include "vocab/vocab_state.cuh"

namespace microspec::vocab {

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
struct Entry {
  Integer token, group;

  MICROSPEC_DEVICE void fetch(const VocabArgs& args, int64_t position) {
    token = group = Integer{};
    if (position < 0) return;
    const int64_t row = args.token_groups ? 0 : blockIdx.x * args.count;
    token.fetch(args.tokens, args.long_tokens, row + position);
    if (args.token_groups) group.fetch(args.token_groups, args.long_groups, position);
  }
  // Returns the token if it is valid and belongs to this block's group, else kNone.
  MICROSPEC_DEVICE int32_t own_token(const VocabArgs& args) const {
    const bool own = !args.token_groups || (group.low == static_cast<int32_t>(blockIdx.x) && group.high == 0);
    const bool exists = token.low >= 0 && token.low < args.vocab_size && token.high == 0;
    return own && exists ? token.low : kNone;
  }
};

// Returns the token's slot, kListed, or kNone if it has no slot.
MICROSPEC_DEVICE int32_t slot_of(const Group& group, int32_t token) {
  if (token == kNone) return kNone;
  const int32_t slot = group.token_slots[token];
  return slot < group.capacity && slot >= kListed ? slot : kNone;
}

MICROSPEC_DEVICE void clear_table(Shared& shared) {
#pragma unroll
  for (int i = 0; i < kTable; i += kThreads) {
    shared.table_tokens[i + threadIdx.x] = kNone;
    shared.table_positions[i + threadIdx.x] = kNone;
  }
}

// Records a newcomer and returns its place in the table.
MICROSPEC_DEVICE int note_newcomer(Shared& shared, int32_t token, int32_t position) {
  // Multiplicative hashing: the top bits of the product depend on all bits of the token.
  int place = static_cast<int>(static_cast<uint32_t>(token) * 0x9e3779b1u >> (32 - kTableBits));
  while (true) {
    const int32_t before = atomicCAS(&shared.table_tokens[place], kNone, token);
    if (before == kNone || before == token) break;
    place = (place + 1) % kTable;
  }
  atomicMax(&shared.table_positions[place], position);
  return place;
}

// Walks over the tokens. Fills `newcomers`, newest first, and last_use. Sets shared.cutoff and
// shared.newcomers, which are valid after the next barrier. `token` is the thread's token in the first tile,
// and `slot` is that token's slot.
MICROSPEC_DEVICE void walk(const VocabArgs& args, const Group& group, Shared& shared, int32_t* last_use,
                           Newcomer* newcomers, unsigned room, int32_t token, int32_t slot) {
  unsigned distinct = 0, listed = 0;
  int64_t position = args.count - 1 - static_cast<int64_t>(threadIdx.x);
  for (int64_t left = args.count - kThreads;; left -= kThreads) {
    Entry next;
    next.fetch(args, position - kThreads);
    const int32_t own = static_cast<int32_t>(position);
    int place = kNone;
    if (slot >= 0) {
      atomicMax(&last_use[slot], own);
    } else if (token != kNone && slot != kListed) {
      place = note_newcomer(shared, token, own);
    }
    // Most tiles of a ragged batch hold only other groups' tokens.
    if (__syncthreads_or(token != kNone)) {
      // A pinned slot's last use (kAlways) equals no position. A last use from a newer tile equals no
      // position of this tile.
      const bool is_resident = slot >= 0 && last_use[slot] == own;
      const bool is_newcomer = place >= 0 && shared.table_positions[place] == own;
      const unsigned found = __ballot_sync(kAllLanes, is_resident || is_newcomer);
      const unsigned fresh = __ballot_sync(kAllLanes, is_newcomer);
      // Both counts fit one word: each is at most kThreads.
      if (lane_index() == 0) shared.tile_counts[warp_index()] = __popc(found) | __popc(fresh) << 16;
      __syncthreads();
      const Prefix counts = sum_of_warps(shared.tile_counts);
      const unsigned rank = distinct + (counts.before & 0xffff) + __popc(found & lanes_below());
      const unsigned index = listed + (counts.before >> 16) + __popc(fresh & lanes_below());
      distinct += counts.total & 0xffff;
      listed += counts.total >> 16;
      const bool is_last = left <= 0 || distinct >= room;
      if (is_newcomer && rank < room) {
        newcomers[index] = {token, own};
        if (!is_last) group.token_slots[token] = kListed;
      }
      if ((is_resident || is_newcomer) && rank + 1 == room) {
        shared.cutoff = own;
        shared.newcomers = index + is_newcomer;
      }
      if (is_last) break;
      clear_table(shared);
      __syncthreads();
    }
    if (left <= 0) break;
    position -= kThreads;
    token = next.own_token(args);
    slot = slot_of(group, token);
  }
  if (threadIdx.x == 0 && distinct < room) {
    shared.cutoff = 0;
    shared.newcomers = listed;
  }
}

}  // namespace microspec::vocab
