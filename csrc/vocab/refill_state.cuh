// SPDX-License-Identifier: Apache-2.0
// Shared definitions of the vocab_refill_ kernels: sizes, a group's state, its workspace and its order of
// tokens.
#pragma once

#include "cuda/block_reduce.cuh"
#include "vocab/args.h"
#include "vocab/learn_args.h"

namespace microspec::refill {

// One block fills a group. A sweep over V is bound by what one SM reads, so the block has all of its threads.
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
// Tokens that a thread of a sweep loads at once: 32 KB in flight in the block.
constexpr int kAhead = 8;

constexpr int32_t kNone = -1;

// What the threads of a block share, in shared memory: a pass's histogram (refill_select.cuh).
constexpr int kBins = 2 * kThreads;
struct BlockState {
  unsigned bins[kBins];
  unsigned warp_sums[kMaxWarps];
  unsigned digit, before, count;  // of the bin that a pass chose
  unsigned closed;                // slots of the group, here as no register is left for them
};

// A place in the order of tokens: the larger comes first. All zero is the place of no token. One load is 16
// bytes.
struct alignas(16) Place {
  uint64_t counts;  // the list's count, then the total
  uint64_t last;    // ~(rank, id)

  MICROSPEC_DEVICE bool comes_before(const Place& other) const {
    return counts > other.counts || (counts == other.counts && last > other.last);
  }
};

MICROSPEC_DEVICE uint64_t pair(uint32_t high, uint32_t low) {
  return static_cast<uint64_t>(high) << 32 | low;
}
MICROSPEC_DEVICE Place place_of(uint32_t count, uint32_t total, uint32_t rank, uint32_t token) {
  return {pair(count, total), ~pair(rank, token)};
}

// Offsets into a group's workspace, in 32-bit words. First the places [K] of the slots' tokens, 4 words each,
// which stay aligned as `words` is a multiple of 4. A bitmap has a second array: the set bits before each of
// its words.
struct Layout {
  int64_t newcomers;   // tokens [K], by id
  int64_t held, kept;  // bitmaps of slots, [ceil(K / 32)]; closed slots are kept
  int64_t chosen;      // bitmap of slots with its second array, first of unpinned slots, then of free ones
  int64_t wanted;      // bitmap of tokens [ceil(V / 32)] with its second array
  int64_t count;       // one word: the number of wanted tokens
  int64_t words;       // words in total
};

inline Layout layout_of(const RefillArgs& args) {
  const int64_t slot_words = ceil_div<int64_t>(args.capacity, kWarp);
  Layout layout;
  layout.newcomers = 4 * args.capacity;
  layout.held = layout.newcomers + args.capacity;
  layout.kept = layout.held + slot_words;
  layout.chosen = layout.kept + slot_words;
  layout.wanted = layout.chosen + 2 * slot_words;
  layout.count = layout.wanted + 2 * ceil_div<int64_t>(args.vocab_size, kWarp);
  layout.words = ceil_div<int64_t>(layout.count + 1, 4) * 4;
  return layout;
}

// A set of numbers in [0, size). A warp writes or reads a word at a time.
struct Bitmap {
  uint32_t* words;
  int size;

  MICROSPEC_DEVICE int num_words() const { return (size + kWarp - 1) / kWarp; }
  MICROSPEC_DEVICE bool has(int i) const { return words[i / kWarp] >> i % kWarp & 1; }

  // Takes `member` of all lanes of a warp, which hold 32 numbers beginning at a multiple of 32.
  MICROSPEC_DEVICE void write(int i, bool member) const {
    const unsigned word = __ballot_sync(kAllLanes, member);
    if (lane_index() == 0 && i < size) words[i / kWarp] = word;
  }
};

// The state of one group, and what the refill knows about it.
struct Group {
  int32_t* active_ids;
  int64_t* slot_stamps;
  int32_t* token_slots;
  int64_t* clock;
  Place* places;
  int32_t* newcomers;
  Bitmap held, kept, chosen, wanted;
  uint32_t* count;
  int capacity;
  int vocab_size;

  MICROSPEC_DEVICE Group(const RefillArgs& args, const Layout& layout, uint32_t* workspace, int64_t index)
      : active_ids(args.active_ids + index * args.capacity),
        slot_stamps(args.slot_stamps + index * args.capacity),
        token_slots(args.token_slots + index * args.vocab_size),
        clock(args.clock + index),
        capacity(static_cast<int>(args.capacity)),
        vocab_size(static_cast<int>(args.vocab_size)) {
    uint32_t* const mine = workspace + index * layout.words;
    places = reinterpret_cast<Place*>(mine);
    newcomers = reinterpret_cast<int32_t*>(mine + layout.newcomers);
    held = {mine + layout.held, capacity};
    kept = {mine + layout.kept, capacity};
    chosen = {mine + layout.chosen, capacity};
    wanted = {mine + layout.wanted, vocab_size};
    count = mine + layout.count;
  }

  // Whether a slot below K takes no token (vocab/args.h).
  MICROSPEC_DEVICE bool is_closed(int slot) const {
    return active_ids[slot] < 0 && slot_stamps[slot] == kPinnedStamp;
  }

  // Calls f(slot) for each of this thread's slots. All lanes of a warp call it together, and a slot may lie
  // beyond the last: a warp's slots begin at a multiple of 32.
  template <class F>
  MICROSPEC_DEVICE void each_slot(F&& f) const {
    for (int first = warp_index() * kWarp; first < capacity; first += kThreads) f(first + lane_index());
  }
};

// Returns the list of a group, or -1 if it has none.
MICROSPEC_DEVICE int64_t list_of(const RefillArgs& args, int64_t group) {
  const int64_t list = args.long_lists ? static_cast<const int64_t*>(args.group_lists)[group]
                                       : static_cast<const int32_t*>(args.group_lists)[group];
  return list >= 0 && list < args.lists ? list : kNone;
}

// The counts and ranks that order the tokens of one group.
struct Order {
  const int32_t* counts;  // [V], of the group's list
  const int32_t* totals;  // [V], or null
  const int32_t* ranks;   // [V]
  int vocab_size;

  MICROSPEC_DEVICE Order(const RefillArgs& args, int64_t list)
      : counts(args.text_counts + list * args.vocab_size),
        totals(args.total_counts),
        ranks(args.token_ranks),
        vocab_size(static_cast<int>(args.vocab_size)) {}

  static MICROSPEC_DEVICE uint32_t not_negative(int32_t value) {
    return static_cast<uint32_t>(max(value, 0));
  }
  MICROSPEC_DEVICE uint32_t total(int token) const { return totals ? not_negative(totals[token]) : 0; }
  MICROSPEC_DEVICE uint32_t rank(int token) const { return not_negative(ranks[token]); }
  MICROSPEC_DEVICE Place place(int token) const {
    return place_of(not_negative(counts[token]), total(token), rank(token), static_cast<uint32_t>(token));
  }

  // Calls f(token, count, total, rank) for each of this thread's tokens. Loads the total and the rank only
  // where the count is `tied`; elsewhere they are 0. All lanes of a warp call f together, and a token may lie
  // beyond the last, with count kNone: a warp's tokens begin at a multiple of 32.
  template <class F>
  MICROSPEC_DEVICE void sweep(uint32_t tied, F&& f) const {
    for (int first = warp_index() * kWarp; first < vocab_size; first += kAhead * kThreads) {
      uint32_t count[kAhead], total_count[kAhead], token_rank[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int token = first + i * kThreads + lane_index();
        count[i] = token < vocab_size ? not_negative(counts[token]) : static_cast<uint32_t>(kNone);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int token = first + i * kThreads + lane_index();
        const bool is_tied = count[i] == tied && token < vocab_size;
        total_count[i] = is_tied ? total(token) : 0;
        token_rank[i] = is_tied ? rank(token) : 0;
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        f(first + i * kThreads + lane_index(), count[i], total_count[i], token_rank[i]);
      }
    }
  }
};

}  // namespace microspec::refill
