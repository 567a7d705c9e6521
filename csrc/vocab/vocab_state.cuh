// SPDX-License-Identifier: Apache-2.0
// Shared definitions of the vocab_update_ kernel: sizes, marks, a group's state and a block's state.
#pragma once

#include "cuda/block_select.cuh"
#include "vocab/args.h"
#include "vocab/vocab_cuda.h"

namespace microspec::vocab {

// Tokens in a tile, one a thread. A draft tree with the target's candidates is 100 to 500 tokens: one tile.
// Twice as many threads would halve the tiles of a long prompt, but make every barrier and every bisection
// step of a short call slower.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
// A tile's newcomers fill at most half of the table: 1.5 probes each.
constexpr int kTable = 2 * kThreads;
constexpr int kTableBits = 10;
static_assert(kTable == 1 << kTableBits);

constexpr int32_t kNone = -1;
// The mark in token_slots of a newcomer that the walk has recorded, until it gets a slot.
constexpr int32_t kPending = -2;
// The last use of a pinned slot: above every position.
constexpr int32_t kPinnedUse = 0x7fffffff;

// Positions of a ragged batch that a block scans at once for its group's tokens: sixteen loads of a thread
// share one trip to the L2 cache. And the positions that it can queue.
constexpr int kScannedByThread = 16;
constexpr int kScanned = kScannedByThread * kThreads;
constexpr int kQueue = kScanned + kThreads;

// The group in a narrow array (narrow_groups_kernel) of a token of no group.
constexpr int kNoGroup = 0xffff;

// A token to enter, and the position of its last occurrence in the call.
struct Newcomer {
  int32_t token;
  int32_t position;
};

// What the threads of a block share, in shared memory.
struct BlockState {
  int32_t table_tokens[kTable];
  int32_t table_positions[kTable];
  unsigned tile_counts[kMaxWarps];
  unsigned scan_counts[2][kMaxWarps];
  unsigned slot_counts[kMaxWarps];
  int warp_oldest[kMaxWarps];
  int64_t clock;
  // The walk's result: the position below which tokens do not count, and the number of newcomers that do.
  int32_t cutoff;
  unsigned newcomers;
  SelectScratch select;
};

// The state of one group.
struct Group {
  int32_t* active_ids;
  int64_t* slot_stamps;
  int32_t* token_slots;
  int64_t vocab_size;
  int capacity;

  MICROSPEC_DEVICE Group(const VocabArgs& args, int64_t index)
      : active_ids(args.active_ids + index * args.capacity),
        slot_stamps(args.slot_stamps + index * args.capacity),
        token_slots(args.token_slots + index * args.vocab_size),
        vocab_size(args.vocab_size),
        capacity(static_cast<int>(args.capacity)) {}
};

}  // namespace microspec::vocab
