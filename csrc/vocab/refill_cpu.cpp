// SPDX-License-Identifier: Apache-2.0
// vocab_refill_ on the CPU.
//
// Few of the V tokens can be among the first n. Sweeps over the counts find the largest power of two that
// at least n tokens reach; the powers ascend, because the n-th token mostly stood in few texts. Only the keys
// of these tokens are collected. Mostly many tokens share the n-th one's count, so a selection by digits then
// finds the last key that is wanted, and only n keys are sorted. If too few tokens have a count in the list,
// the same sweep over the totals finds the others. If too few have any count, tokens with a rank below n plus
// the number of counted tokens join; they suffice if the ranks are a permutation. Expected at V = 262144 and
// n = 3072, one thread: a sweep reads 1 MB from L2, 17 µs, and there are one to four of them; collecting
// 13000 tied keys takes 100 µs, selecting among them 70 and sorting 3072 keys by five digits of eight
// bits 40.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/clones.h"
#include "common/integers.h"
#include "common/parallel.h"
#include "vocab/args.h"
#include "vocab/learn.h"

namespace microspec {

namespace {

// A token's key: its counts and its place. The larger counts come first, then the smaller place.
struct Key {
  uint64_t counts;  // the list's count, then the total
  uint64_t place;   // the rank, then the id

  int32_t token() const { return static_cast<int32_t>(place); }
  bool comes_before(const Key& other) const {
    return counts != other.counts ? counts > other.counts : place < other.place;
  }
};

// Counts and ranks below 0 count as 0.
uint64_t not_negative(int32_t value) { return static_cast<uint64_t>(std::max(value, 0)); }

// The counts and ranks that order the tokens of one group.
struct Order {
  const int32_t* counts;  // [V], of the group's list
  const int32_t* totals;  // [V], or null
  const int32_t* ranks;   // [V]
  int64_t vocab_size;

  Key key(int64_t token) const {
    const uint64_t total = totals ? not_negative(totals[token]) : 0;
    return {not_negative(counts[token]) << 32 | total,
            not_negative(ranks[token]) << 32 | static_cast<uint64_t>(token)};
  }
};

// A key's digits of eight bits, the most significant first: four of the count, of the total and of the rank.
// Ids are no digits: keys are collected by id, and every step keeps the order of equal keys.
constexpr int kDigits = 12;
uint32_t digit_of(const Key& key, int digit) {
  // The larger counts come first, so their digits are inverted.
  return digit < 8 ? ~(key.counts >> (56 - 8 * digit)) & 255 : key.place >> (120 - 8 * digit) & 255;
}

// Returns whether each digit varies among the keys. A digit that all keys share costs no pass.
std::array<bool, kDigits> varying_digits(const std::vector<Key>& keys) {
  Key bits{};
  for (const Key& key : keys) {
    bits.counts |= key.counts ^ keys[0].counts;
    bits.place |= key.place ^ keys[0].place;
  }
  std::array<bool, kDigits> varying;
  for (int digit = 0; digit < kDigits; ++digit) {
    varying[digit] = (digit < 8 ? bits.counts >> (56 - 8 * digit) : bits.place >> (120 - 8 * digit)) & 255;
  }
  return varying;
}

// Sorts keys by LSD radix.
void sort_keys(std::vector<Key>& keys) {
  const auto varying = varying_digits(keys);
  std::vector<Key> sorted(keys.size());
  for (int digit = kDigits - 1; digit >= 0; --digit) {
    if (!varying[digit]) continue;
    size_t begins[257] = {};
    for (const Key& key : keys) ++begins[digit_of(key, digit) + 1];
    for (int i = 1; i < 256; ++i) begins[i] += begins[i - 1];
    for (const Key& key : keys) sorted[begins[digit_of(key, digit)]++] = key;
    keys.swap(sorted);
  }
}

// Leaves the first `count` keys of the order, which keep the order in which they lie. A digit at a time: the
// keys that equal the last wanted one so far are tied.
void select_keys(std::vector<Key>& keys, int64_t count) {
  const auto varying = varying_digits(keys);
  std::vector<Key> tied(keys.begin(), keys.end());
  auto wanted = static_cast<size_t>(count);  // of the tied ones
  for (int digit = 0; digit < kDigits && wanted < tied.size(); ++digit) {
    if (!varying[digit]) continue;
    size_t sizes[256] = {};
    for (const Key& key : tied) ++sizes[digit_of(key, digit)];
    uint32_t last = 0;
    for (; sizes[last] < wanted; ++last) wanted -= sizes[last];
    std::erase_if(tied, [&](const Key& key) { return digit_of(key, digit) != last; });
  }
  // Now all tied keys are wanted, or they differ by id alone and so are in order.
  const auto earlier = [](const Key& a, const Key& b) { return a.comes_before(b); };
  const Key last =
      wanted < tied.size() ? tied[wanted - 1] : *std::max_element(tied.begin(), tied.end(), earlier);
  std::erase_if(keys, [&](const Key& key) { return last.comes_before(key); });
}

// Tokens of a thread's share: small enough for two threads at V = 32000, large against the cost of a share.
constexpr int64_t kShare = 16384;

// Calls body(share, begin, end) for the shares of [0, vocab_size), on several threads.
template <class Body>
void for_shares(int64_t vocab_size, const Body& body) {
  parallel_for((vocab_size + kShare - 1) / kShare, 1, [&](int64_t first, int64_t last) {
    for (int64_t share = first; share < last; ++share) {
      body(share, share * kShare, std::min(vocab_size, (share + 1) * kShare));
    }
  });
}

MICROSPEC_CLONES int64_t count_at_least(const int32_t* values, int64_t count, int32_t least) {
  int32_t found = 0;  // a share has fewer than 2^31 values
  for (int64_t i = 0; i < count; ++i) found += values[i] >= least;
  return found;
}

// Returns the number of tokens whose value is at least `least`.
int64_t tokens_at_least(const int32_t* values, int64_t vocab_size, int32_t least) {
  std::atomic<int64_t> found{0};
  for_shares(vocab_size, [&](int64_t, int64_t begin, int64_t end) {
    found += count_at_least(values + begin, end - begin, least);
  });
  return found;
}

// How many of the values are large.
struct Level {
  int64_t positive;  // values of at least 1
  int32_t reached;   // the largest power of two that at least `wanted` values reach, or 0
};

Level level_of(const int32_t* values, int64_t vocab_size, int64_t wanted) {
  Level level{tokens_at_least(values, vocab_size, 1), 0};
  int64_t found = level.positive;
  for (int power = 0; found >= wanted; ++power) {
    level.reached = int32_t{1} << power;
    if (power == 30) break;
    found = tokens_at_least(values, vocab_size, int32_t{2} << power);
  }
  return level;
}

// A range of values. Null values are in no range.
struct Range {
  const int32_t* values;
  int32_t least, most;
};

MICROSPEC_CLONES void mark_range(const int32_t* values, int64_t count, int32_t least, int32_t most,
                                 uint8_t* marks) {
  for (int64_t i = 0; i < count; ++i) marks[i] |= (values[i] >= least) & (values[i] <= most);
}

// Most blocks of a share have no mark, or most have some.
constexpr int64_t kBlock = 128;
MICROSPEC_CLONES void mark_blocks(const uint64_t* words, uint64_t* any) {
  for (int64_t block = 0; block < kShare / kBlock; ++block) {
    for (int64_t word = 0; word < kBlock / 8; ++word) any[block] |= words[block * kBlock / 8 + word];
  }
}

// Returns the number of the first byte in memory whose lowest bit is set, of bytes that are 0 or 1.
int64_t byte_of_lowest(uint64_t bytes) {
  static_assert(std::endian::native == std::endian::little);
  return std::countr_zero(bytes) / 8;
}

// Returns the keys of the tokens that are in at least one of the ranges, by id.
std::vector<Key> collect(const Order& order, std::initializer_list<Range> ranges) {
  std::vector<std::vector<Key>> found((order.vocab_size + kShare - 1) / kShare);
  for_shares(order.vocab_size, [&](int64_t share, int64_t begin, int64_t end) {
    uint64_t words[kShare / 8] = {};
    const auto marks = reinterpret_cast<uint8_t*>(words);
    for (const Range& range : ranges) {
      if (range.values) mark_range(range.values + begin, end - begin, range.least, range.most, marks);
    }
    uint64_t any[kShare / kBlock] = {};
    mark_blocks(words, any);
    for (int64_t block = 0; block < kShare / kBlock; ++block) {
      if (!any[block]) continue;
      for (int64_t word = block * kBlock / 8; word < (block + 1) * kBlock / 8; ++word) {
        for (uint64_t left = words[word]; left; left &= left - 1) {
          found[share].push_back(order.key(begin + 8 * word + byte_of_lowest(left)));
        }
      }
    }
  });
  std::vector<Key> keys;
  for (const auto& share : found) keys.insert(keys.end(), share.begin(), share.end());
  return keys;
}

// Returns the keys of the first `count` tokens, in order.
std::vector<Key> first_tokens(const Order& order, int64_t count) {
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min(), kMost = std::numeric_limits<int32_t>::max();
  if (count == 0) return {};
  const int64_t size = order.vocab_size;
  std::vector<Key> keys;
  const Level in_list = level_of(order.counts, size, count);
  if (in_list.reached) {
    keys = collect(order, {{order.counts, in_list.reached, kMost}});
  } else {
    const Level in_total = order.totals ? level_of(order.totals, size, count) : Level{0, 0};
    const auto rank =
        static_cast<int32_t>(std::min<int64_t>(kMost, count + in_list.positive + in_total.positive));
    keys = collect(order, {{in_list.positive ? order.counts : nullptr, 1, kMost},
                           {in_total.positive ? order.totals : nullptr, std::max(in_total.reached, 1), kMost},
                           {in_total.reached ? nullptr : order.ranks, kLeast, rank}});
    // Ranks that are no permutation may leave too few.
    if (static_cast<int64_t>(keys.size()) < count) keys = collect(order, {{order.ranks, kLeast, kMost}});
  }
  if (static_cast<int64_t>(keys.size()) > count) select_keys(keys, count);
  sort_keys(keys);
  return keys;
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
void refill_group(const Group& group, const std::vector<Key>& wanted, int64_t pinned, bool reset) {
  std::vector<char> keeps(group.capacity);
  for (int64_t slot = 0; slot < group.capacity; ++slot) keeps[slot] = group.is_closed(slot);
  std::vector<int32_t> newcomers;
  for (const Key& key : wanted) {
    const int32_t token = key.token(), slot = group.token_slots[token];
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
