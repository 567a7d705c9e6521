// SPDX-License-Identifier: Apache-2.0
// vocab_refill_ on the CPU: which slots the first tokens of the order take.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/integers.h"
#include "vocab/args.h"
#include "vocab/first_tokens_cpu.h"
#include "vocab/learn.h"
#include "vocab/packed_places.h"

namespace microspec {

namespace {

// One group's state.
struct Group {
  int32_t* active_ids;
  int64_t* slot_stamps;
  int32_t* token_slots;
  int64_t* clock;
  int64_t capacity;
  int64_t vocab_size;

  // Whether the slot and token_slots agree that the slot holds its token.
  bool holds(int64_t slot) const {
    const int32_t token = active_ids[slot];
    return token >= 0 && token < vocab_size && token_slots[token] == slot;
  }
  // Whether the slot takes no token (args.h).
  bool is_closed(int64_t slot) const { return active_ids[slot] < 0 && slot_stamps[slot] == kPinnedStamp; }
  int64_t open_slots() const {
    int64_t open = 0;
    for (int64_t slot = 0; slot < capacity; ++slot) open += !is_closed(slot);
    return open;
  }
  void clear(int64_t slot) const {
    if (holds(slot)) token_slots[active_ids[slot]] = -1;
    active_ids[slot] = -1;
    slot_stamps[slot] = kEmptyStamp;
  }
};

// Makes the tokens that lost their pin the oldest, in the order of their slots: they take the stamps from 0
// on, and all others move up. `keeps` says which slots are closed or hold a token that is pinned from now on.
void unpin(const Group& group, const std::vector<char>& keeps) {
  int64_t unpinned = 0;
  for (int64_t slot = 0; slot < group.capacity; ++slot) {
    unpinned += group.slot_stamps[slot] == kPinnedStamp && !keeps[slot];
  }
  if (!unpinned) return;
  int64_t next = 0;
  for (int64_t slot = 0; slot < group.capacity; ++slot) {
    int64_t& stamp = group.slot_stamps[slot];
    if (stamp == kPinnedStamp) {
      if (!keeps[slot]) stamp = next++;
    } else if (stamp >= 0) {
      stamp = std::min(wrapping_add(stamp, unpinned), kPinnedStamp - 1);
    }
  }
  *group.clock = wrapping_add(*group.clock, unpinned);
}

// Returns the slots that the newcomers take, ascending: all that are not kept, or those with the smallest
// stamps.
std::vector<int64_t> free_slots(const Group& group, const std::vector<char>& keeps, int64_t newcomers,
                                bool reset) {
  std::vector<int64_t> slots;
  for (int64_t slot = 0; slot < group.capacity; ++slot) {
    if (!keeps[slot]) slots.push_back(slot);
  }
  if (reset) return slots;
  const auto older = [&](int64_t a, int64_t b) {
    const int64_t x = group.slot_stamps[a], y = group.slot_stamps[b];
    return x != y ? x < y : a < b;
  };
  std::nth_element(slots.begin(), slots.begin() + newcomers, slots.end(), older);
  slots.resize(newcomers);
  std::sort(slots.begin(), slots.end());
  return slots;
}

// Brings the wanted tokens in, the first of the order first.
void refill_group(const Group& group, const std::vector<int32_t>& wanted, int64_t pinned, bool reset) {
  std::vector<char> keeps(group.capacity);
  for (int64_t slot = 0; slot < group.capacity; ++slot) keeps[slot] = group.is_closed(slot);
  std::unique_ptr<uint32_t[]> newcomers(new uint32_t[wanted.size()]);
  int64_t entering = 0;
  for (const int32_t token : wanted) {
    const int32_t slot = group.token_slots[token];
    if (slot >= 0 && slot < group.capacity && group.active_ids[slot] == token) {
      keeps[slot] = 1;
    } else {
      newcomers[entering++] = static_cast<uint32_t>(token);
    }
  }
  sort_bits(newcomers, entering, 0, 31);
  if (!reset) unpin(group, keeps);
  const auto slots = free_slots(group, keeps, entering, reset);
  for (const int64_t slot : slots) group.clear(slot);
  for (int64_t i = 0; i < entering; ++i) {
    group.active_ids[slots[i]] = static_cast<int32_t>(newcomers[i]);
    group.token_slots[newcomers[i]] = static_cast<int32_t>(slots[i]);
  }
  const auto count = static_cast<int64_t>(wanted.size());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t slot = group.token_slots[wanted[i]];
    group.slot_stamps[slot] = !reset || i < pinned ? kPinnedStamp : count - 1 - i;
  }
  if (reset) *group.clock = std::max<int64_t>(count - pinned, 0);
}

}  // namespace

void refill_cpu(const RefillArgs& args) {
  for (int64_t g = 0; g < args.groups; ++g) {
    const int64_t list = value_at(args.group_lists, args.long_lists, g);
    if (list < 0 || list >= args.lists) continue;
    const TokenOrder order{args.text_counts + list * args.vocab_size, args.total_counts, args.token_ranks,
                           args.vocab_size};
    const Group group{args.active_ids + g * args.capacity,
                      args.slot_stamps + g * args.capacity,
                      args.token_slots + g * args.vocab_size,
                      args.clock + g,
                      args.capacity,
                      args.vocab_size};
    const int64_t most = args.reset ? args.capacity : args.pinned;
    const int64_t count = std::min({args.vocab_size, most, group.open_slots()});
    refill_group(group, first_tokens(order, count), args.pinned, args.reset);
  }
}

}  // namespace microspec
