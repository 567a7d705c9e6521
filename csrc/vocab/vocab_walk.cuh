// SPDX-License-Identifier: Apache-2.0
// The walk over a call's tokens, newest first. It finds the residents to refresh and the newcomers.
//
//     position   N - 1 … N - kThreads    N - 1 - kThreads … N - 2 kThreads    …
//     thread     0 … kThreads - 1        0 … kThreads - 1                     …
//     tile       first                   second                               …
//
// Of a ragged batch, a block sees all groups' tokens. It scans a few thousand at a time and queues the
// positions of its group's, which then make tiles: tokens and slots are loaded for those only.
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

// The token at one position of the block's group, possibly still in flight.
struct TokenAt {
  Integer value;

  MICROSPEC_DEVICE void fetch(const VocabArgs& args, int64_t position) {
    value = Integer{};
    if (position < 0) return;
    const int64_t row = args.token_groups ? 0 : blockIdx.x * args.count;
    value.fetch(args.tokens, args.long_tokens, row + position);
  }
  // Returns the token if it is valid, else kNone.
  MICROSPEC_DEVICE int32_t token(const VocabArgs& args) const {
    return value.low >= 0 && value.low < args.vocab_size && value.high == 0 ? value.low : kNone;
  }
};

// Deals the positions of the group's tokens to the threads, newest first, a tile at a time.
class Feed {
 public:
  // queue is [kQueue], for a ragged batch.
  MICROSPEC_DEVICE Feed(const VocabArgs& args, const TokenGroups& groups, BlockState& block, int32_t* queue)
      : groups_(groups), block_(block), queue_(queue), left_(args.count) {}

  // Sets `position` to the thread's in the next tile, -1: none. Returns whether the tile has any. The whole
  // block calls this.
  MICROSPEC_DEVICE bool next(int64_t& position) {
    if (!groups_.data) {
      position = left_ - 1 - static_cast<int64_t>(threadIdx.x);
      const bool any = left_ > 0;
      left_ -= kThreads;
      return any;
    }
    while (queued_ - taken_ < kThreads && left_ > 0) scan();
    __syncthreads();
    const unsigned place = taken_ + threadIdx.x;
    position = place < queued_ ? queue_[place % kQueue] : -1;
    const bool any = taken_ < queued_;
    taken_ = min(queued_, taken_ + kThreads);
    return any;
  }

 private:
  // Returns a bit for each of the thread's positions in the next scan that holds the group: bit i for
  // `newest` - i * kWarp.
  template <class Load>
  MICROSPEC_DEVICE unsigned in_group(int newest, Load&& load) const {
    unsigned bits = 0;
    if (newest >= (kScannedByThread - 1) * kWarp) {
#pragma unroll
      for (int i = 0; i < kScannedByThread; ++i) bits |= load(newest - i * kWarp) ? 1u << i : 0u;
    } else {
      for (int i = 0; newest - i * kWarp >= 0; ++i) bits |= load(newest - i * kWarp) ? 1u << i : 0u;
    }
    return bits;
  }
  // Queues the positions of the group's tokens among the next kScanned, newest first. The queue has room. A
  // warp's positions are consecutive.
  MICROSPEC_DEVICE void scan() {
    const int newest = static_cast<int>(left_) - 1 - warp_index() * kScannedByThread * kWarp - lane_index();
    const auto* narrow = static_cast<const uint16_t*>(groups_.data);
    const auto* shorts = static_cast<const uint32_t*>(groups_.data);
    const auto* longs = static_cast<const uint2*>(groups_.data);
    const unsigned mine =
        groups_.bytes == 2 ? in_group(newest, [&](int i) { return narrow[i] == blockIdx.x; })
        : groups_.bytes == 4
            ? in_group(newest, [&](int i) { return shorts[i] == blockIdx.x; })
            : in_group(newest, [&](int i) { return longs[i].x == blockIdx.x && longs[i].y == 0; });
    left_ -= kScanned;
    // The scans write to two arrays by turns, so that one barrier each suffices.
    unsigned* const counts = block_.scan_counts[turn_];
    turn_ ^= 1;
    const unsigned count = __reduce_add_sync(kAllLanes, __popc(mine));
    if (lane_index() == 0) counts[warp_index()] = count;
    __syncthreads();
    const Prefix prefix = sum_of_warps(counts);
    unsigned place = queued_ + prefix.before;
    for (unsigned some = __reduce_or_sync(kAllLanes, mine); some != 0; some &= some - 1) {
      const int i = __ffs(static_cast<int>(some)) - 1;
      const unsigned lanes = __ballot_sync(kAllLanes, mine >> i & 1);
      if (mine >> i & 1) {
        queue_[(place + __popc(lanes & lanes_below())) % kQueue] = newest - i * kWarp;
      }
      place += __popc(lanes);
    }
    queued_ += prefix.total;
  }

  const TokenGroups& groups_;
  BlockState& block_;
  int32_t* queue_;
  int64_t left_;  // positions below this one are not dealt, or not scanned
  unsigned queued_ = 0, taken_ = 0;
  int turn_ = 0;
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
// block.newcomers, which are valid after the next barrier. `position` and `token` are the thread's in the
// first tile, and `slot` is that token's slot.
MICROSPEC_DEVICE void walk(const VocabArgs& args, const Group& group, BlockState& block, int32_t* last_use,
                           Newcomer* newcomers, unsigned room, Feed& feed, int64_t position, int32_t token,
                           int32_t slot) {
  unsigned distinct = 0, recorded = 0;
  while (true) {
    int64_t next_position;
    const bool more = feed.next(next_position);
    TokenAt next;
    next.fetch(args, next_position);
    const int32_t use = static_cast<int32_t>(position);
    int place = kNone;
    if (slot >= 0) {
      atomicMax(&last_use[slot], use);
    } else if (token != kNone && slot != kPending) {
      place = note_newcomer(block, token, use);
    }
    if (__syncthreads_or(token != kNone)) {  // a tile of padding alone has nothing to count
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
      const bool is_last = !more || distinct >= room;
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
    if (!more) break;
    position = next_position;
    token = next.token(args);
    slot = slot_of(group, token);
  }
  if (threadIdx.x == 0 && distinct < room) {
    block.cutoff = 0;
    block.newcomers = recorded;
  }
}

}  // namespace microspec::vocab
