// SPDX-License-Identifier: Apache-2.0
// vocab_refill_ on the CPU.
//
// The first n tokens in the order of counts and ranks are selected in four steps, because few of the V tokens
// have a count: 1. the tokens with a count in the list; if they are fewer than n, 2. also those with a total
// count; 3. also those with a rank below n plus the number of candidates, which suffice if the ranks are a
// permutation; 4. else all. Each step is a sweep over V, and std::nth_element orders the candidates alone.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/integers.h"
#include "common/parallel.h"
#include "vocab/args.h"
#include "vocab/learn.h"

namespace microspec {

namespace {

// A token's place in the order: the larger comes first. Counts and ranks below 0 count as 0.
struct Place {
  uint64_t counts;  // the list's count, then the total
  uint64_t last;    // ~(rank, id)

  bool operator<(const Place& other) const {
    return counts != other.counts ? counts > other.counts : last > other.last;
  }
  int32_t token() const { return static_cast<int32_t>(~static_cast<uint32_t>(last)); }
};

uint64_t not_negative(int32_t value) { return static_cast<uint64_t>(std::max(value, 0)); }

// The counts and ranks that order the tokens of one group.
struct Order {
  const int32_t* counts;  // [V], of the group's list
  const int32_t* totals;  // [V], or null
  const int32_t* ranks;   // [V]
  int64_t vocab_size;

  Place place(int64_t token) const {
    const uint64_t total = totals ? not_negative(totals[token]) : 0;
    return {not_negative(counts[token]) << 32 | total,
            ~(not_negative(ranks[token]) << 32 | static_cast<uint64_t>(token))};
  }
};

// Tokens of a sweep. 16 tokens are one load of 512 bits.
constexpr int64_t kSweep = 16;
// Tokens of a thread's share: small enough for two threads at V = 32000, large against the cost of a share.
constexpr int64_t kShare = 16384;

// Returns the places of the tokens for which `wanted(token)`. `any(begin, end)` may rule out a whole range.
template <class Any, class Wanted>
std::vector<Place> collect(const Order& order, const Any& any, const Wanted& wanted) {
  const int64_t shares = (order.vocab_size + kShare - 1) / kShare;
  std::vector<std::vector<Place>> found(shares);
  parallel_for(shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t share = first; share < last; ++share) {
      const int64_t end = std::min(order.vocab_size, (share + 1) * kShare);
      for (int64_t begin = share * kShare; begin < end; begin += kSweep) {
        const int64_t stop = std::min(end, begin + kSweep);
        if (!any(begin, stop)) continue;
        for (int64_t token = begin; token < stop; ++token) {
          if (wanted(token)) found[share].push_back(order.place(token));
        }
      }
    }
  });
  std::vector<Place> places;
  for (const auto& share : found) places.insert(places.end(), share.begin(), share.end());
  return places;
}

bool any_positive(const int32_t* values, int64_t begin, int64_t end) {
  int32_t found = 0;
  for (int64_t i = begin; i < end; ++i) found |= values[i] > 0;
  return found;
}

// Returns at least the first `count` tokens of the order, or all tokens.
std::vector<Place> candidates(const Order& order, int64_t count) {
  const auto in_list = [&](int64_t begin, int64_t end) { return any_positive(order.counts, begin, end); };
  std::vector<Place> places = collect(order, in_list, [&](int64_t t) { return order.counts[t] > 0; });
  if (static_cast<int64_t>(places.size()) >= count) return places;
  const auto counted = [&](int64_t t) {
    return order.counts[t] > 0 || (order.totals && order.totals[t] > 0);
  };
  if (order.totals) {
    const auto in_any = [&](int64_t begin, int64_t end) {
      return in_list(begin, end) || any_positive(order.totals, begin, end);
    };
    places = collect(order, in_any, counted);
    if (static_cast<int64_t>(places.size()) >= count) return places;
  }
  const auto everywhere = [](int64_t, int64_t) { return true; };
  const int64_t rank = count + static_cast<int64_t>(places.size());
  places = collect(order, everywhere, [&](int64_t t) { return counted(t) || order.ranks[t] < rank; });
  if (static_cast<int64_t>(places.size()) >= count) return places;
  return collect(order, everywhere, [](int64_t) { return true; });
}

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
  void clear(int64_t slot) const {
    if (holds(slot)) token_slots[active_ids[slot]] = -1;
    active_ids[slot] = -1;
    slot_stamps[slot] = kEmptyStamp;
  }
};

// Makes the tokens that lost their pin the oldest, in the order of their slots: they take the stamps from 0
// on, and all others move up. `keeps` says which slots hold a token that is pinned from now on.
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

// Brings the wanted tokens in. They are in order if the group is reset, else in any order.
void refill_group(const Group& group, const std::vector<Place>& wanted, int64_t pinned, bool reset) {
  std::vector<char> keeps(group.capacity, 0);
  std::vector<int32_t> newcomers;
  for (const Place& place : wanted) {
    const int32_t token = place.token(), slot = group.token_slots[token];
    if (slot >= 0 && slot < group.capacity && group.active_ids[slot] == token) {
      keeps[slot] = 1;
    } else {
      newcomers.push_back(token);
    }
  }
  std::sort(newcomers.begin(), newcomers.end());
  if (!reset) unpin(group, keeps);
  const auto slots = free_slots(group, keeps, static_cast<int64_t>(newcomers.size()), reset);
  for (const int64_t slot : slots) group.clear(slot);
  for (size_t i = 0; i < newcomers.size(); ++i) {
    group.active_ids[slots[i]] = newcomers[i];
    group.token_slots[newcomers[i]] = static_cast<int32_t>(slots[i]);
  }
  const auto count = static_cast<int64_t>(wanted.size());
  for (int64_t i = 0; i < count; ++i) {
    const int32_t slot = group.token_slots[wanted[i].token()];
    group.slot_stamps[slot] = !reset || i < pinned ? kPinnedStamp : count - 1 - i;
  }
  if (reset) *group.clock = std::max<int64_t>(count - pinned, 0);
}

}  // namespace

void refill_cpu(const RefillArgs& args) {
  for (int64_t g = 0; g < args.groups; ++g) {
    const int64_t list = value_at(args.group_lists, args.long_lists, g);
    if (list < 0 || list >= args.lists) continue;
    const Order order{args.text_counts + list * args.vocab_size, args.total_counts, args.token_ranks,
                      args.vocab_size};
    const int64_t count = std::min(args.vocab_size, args.reset ? args.capacity : args.pinned);
    std::vector<Place> wanted = candidates(order, count);
    std::nth_element(wanted.begin(), wanted.begin() + count, wanted.end());
    wanted.resize(count);
    if (args.reset) std::sort(wanted.begin(), wanted.end());
    refill_group({args.active_ids + g * args.capacity, args.slot_stamps + g * args.capacity,
                  args.token_slots + g * args.vocab_size, args.clock + g, args.capacity, args.vocab_size},
                 wanted, args.pinned, args.reset);
  }
}

}  // namespace microspec
