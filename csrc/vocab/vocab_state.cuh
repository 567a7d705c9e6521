// SPDX-License-Identifier: Apache-2.0
// What the parts of the vocab_update_ kernel share: sizes, marks, a group's state and the block's.
#pragma once

#include "cuda/block_select.cuh"
#include "vocab/args.h"

namespace microspec::vocab {

// Tokens in a tile, one a thread. A draft tree with the target's candidates is 100 to 500 tokens:
// one tile. Twice as many threads would halve the tiles of a long prompt and make every barrier and
// every step of the bisection of a short call dearer.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
// A tile's newcomers fill at most half of the table: 1.5 probes each.
constexpr int kTable = 2 * kThreads;
constexpr int kTableBits = 10;
static_assert(kTable == 1 << kTableBits);

constexpr int32_t kNone = -1;
// In token_slots, between its tile and its seating: a newcomer that is already in the list.
constexpr int32_t kListed = -2;
// Above every position: the last use of a pinned slot.
constexpr int32_t kAlways = 0x7fffffff;

// Of the two arrays that grow with the call, in dynamic shared memory or in a group's part of the
// workspace: the last uses [K] at word 0, then the newcomers [min(K, N)], newest first.
struct Layout {
  int64_t newcomers;  // the word at which they begin, even
  int64_t words;      // in all
};

struct Newcomer {
  int32_t token;
  int32_t position;
};

struct Shared {
  int32_t table_tokens[kTable];
  int32_t table_positions[kTable];
  unsigned tile_counts[kMaxWarps];
  unsigned slot_counts[kMaxWarps];
  int warp_oldest[kMaxWarps];
  int64_t clock;
  // What the walk found: positions before the cut-off do not count, newcomers that do.
  int32_t cutoff;
  unsigned newcomers;
  SelectScratch select;
};

// One group's part of the state.
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
