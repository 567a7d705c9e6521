// Exact LRU without a list: a slot carries the time of its last use.
//
// Sequential LRU over a batch leaves the C most recently used distinct tokens (C = unpinned slots),
// whatever order the evictions happened in. So: walk the batch from its newest token back, refresh
// the resident, note the newcomers, stop after C distinct ones; then hand the newcomers the slots
// with the smallest stamps. Cost: count + K, not count * K.
#include <algorithm>
#include <vector>

#include "common/clones.h"
#include "vocab.h"

namespace microspec {

namespace {

// In token_slots between the walk and the seating: this newcomer, so that a repeated token is counted
// once. The index makes a mark that the caller's state held before the call differ from ours.
int32_t pending_mark(int64_t newcomer) { return static_cast<int32_t>(-2 - newcomer); }

// base + offset without undefined behaviour, whatever the clock shows.
int64_t later(int64_t base, int64_t offset) {
  return static_cast<int64_t>(static_cast<uint64_t>(base) + static_cast<uint64_t>(offset));
}

struct Newcomer {
  int64_t token;
  int64_t stamp;
};

MICROSPEC_CLONES int64_t count_at_most(const int64_t* stamps, int64_t count, int64_t limit) {
  int64_t hits = 0;
  for (int64_t i = 0; i < count; ++i) hits += stamps[i] <= limit;
  return hits;
}

// The smallest stamp such that at least `wanted` slots carry it or a smaller one. Bisection over
// the values: each probe is one vectorised sweep, and twenty of them beat a selection's branches.
int64_t eviction_threshold(const int64_t* stamps, int64_t count, int64_t wanted, int64_t newest) {
  int64_t low = kEmptyStamp, high = newest;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (count_at_most(stamps, count, middle) >= wanted) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace

void vocab_update_group(const VocabGroup& group) {
  const int64_t base = *group.clock;
  *group.clock = later(base, group.clock_advance);
  const int64_t pinned = std::count(group.slot_stamps, group.slot_stamps + group.capacity, kPinnedStamp);
  const int64_t room = group.capacity - pinned;

  std::vector<Newcomer> newcomers;  // newest first
  newcomers.reserve(std::min(room, group.count));
  int64_t distinct = 0;
  for (int64_t i = group.count - 1; i >= 0 && distinct < room; --i) {
    const int64_t token = group.tokens[i];
    const int64_t stamp = later(base, group.offset[i]);
    int32_t& slot = group.token_slots[token];
    if (slot >= 0 && slot < group.capacity && group.active_ids[slot] == token) {
      int64_t& last_use = group.slot_stamps[slot];
      if (last_use >= base) continue;  // pinned, or seen later in this batch
      last_use = stamp;
      ++distinct;
    } else if (const int64_t index = -2 - int64_t{slot};
               index < 0 || index >= static_cast<int64_t>(newcomers.size()) ||
               newcomers[index].token != token) {
      slot = pending_mark(static_cast<int64_t>(newcomers.size()));
      newcomers.push_back({token, stamp});
      ++distinct;
    }
  }
  if (newcomers.empty()) return;

  const int64_t wanted = static_cast<int64_t>(newcomers.size());
  const int64_t newest = std::min(later(base, group.clock_advance), kPinnedStamp - 1);
  const int64_t threshold = eviction_threshold(group.slot_stamps, group.capacity, wanted, newest);
  // Only empty slots share a stamp, and the lowest of them go first; so at the threshold itself
  // just as many as are still wanted are taken.
  int64_t at_threshold = wanted - count_at_most(group.slot_stamps, group.capacity, threshold - 1);
  for (int64_t slot = 0; !newcomers.empty() && slot < group.capacity; ++slot) {
    const int64_t stamp = group.slot_stamps[slot];
    if (stamp > threshold || (stamp == threshold && at_threshold-- <= 0)) continue;
    const int32_t old = group.active_ids[slot];
    if (old >= 0 && old < group.vocab_size && group.token_slots[old] == slot) group.token_slots[old] = -1;
    const Newcomer newcomer = newcomers.back();  // the oldest takes the lowest slot
    newcomers.pop_back();
    group.active_ids[slot] = static_cast<int32_t>(newcomer.token);
    group.token_slots[newcomer.token] = static_cast<int32_t>(slot);
    group.slot_stamps[slot] = newcomer.stamp;
  }
  // Only stamps beyond the clock, which no update leaves, can have kept a newcomer out.
  for (const Newcomer& newcomer : newcomers) group.token_slots[newcomer.token] = -1;
}

}  // namespace microspec
