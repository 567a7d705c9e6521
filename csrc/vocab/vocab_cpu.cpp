// SPDX-License-Identifier: Apache-2.0
// Exact LRU without a list: each slot carries the time of its last use.
//
// Sequential LRU over a batch leaves the C most recently used distinct tokens (C = unpinned slots), in
// whatever order the evictions happened. So the update walks the batch from its newest token back, refreshes
// the residents, records the newcomers and stops after C distinct tokens. Then it gives the newcomers the
// slots with the smallest stamps. The cost is the tokens walked plus a multiple of K, not their product.
#include <algorithm>
#include <vector>

#include "common/clones.h"
#include "vocab.h"

namespace microspec {

namespace {

// The mark of a newcomer in token_slots between the walk and place_newcomers(), so that a repeated token is
// counted once. The index in the mark distinguishes it from a value that the caller's state held before the
// call.
int32_t pending_mark(int64_t newcomer) { return static_cast<int32_t>(-2 - newcomer); }

// Returns the number of stamps that are at most `limit`.
MICROSPEC_CLONES int64_t count_at_most(const int64_t* stamps, int64_t count, int64_t limit) {
  int64_t hits = 0;
  for (int64_t i = 0; i < count; ++i) hits += stamps[i] <= limit;
  return hits;
}

// Returns the smallest stamp such that at least `wanted` slots carry it or a smaller one. Bisects over the
// values: each probe is one vectorised sweep, and twenty sweeps are faster than a selection's branches.
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

VocabUpdate::VocabUpdate(const VocabGroup& group) : group_(group), base_(*group.clock) {
  *group.clock = wrapping_add(base_, group.clock_advance);
  room_ = count_at_most(group.slot_stamps, group.capacity, kPinnedStamp - 1);
  newcomers_.reserve(std::min(room_, group.clock_advance));
}

void VocabUpdate::see(int64_t token, int64_t position) {
  const int64_t stamp = wrapping_add(base_, position);
  int32_t& slot = group_.token_slots[token];
  if (slot >= 0 && slot < group_.capacity && group_.active_ids[slot] == token) {
    int64_t& last_use = group_.slot_stamps[slot];
    if (last_use >= base_) return;  // pinned, or seen later in this call
    last_use = stamp;
    ++distinct_;
  } else if (const int64_t index = -2 - int64_t{slot}; index < 0 ||
                                                       index >= static_cast<int64_t>(newcomers_.size()) ||
                                                       newcomers_[index].token != token) {
    slot = pending_mark(static_cast<int64_t>(newcomers_.size()));
    newcomers_.push_back({token, stamp});
    ++distinct_;
  }
}

void VocabUpdate::place_newcomers() {
  if (newcomers_.empty()) return;

  const int64_t wanted = static_cast<int64_t>(newcomers_.size());
  const int64_t newest = std::min(wrapping_add(base_, group_.clock_advance), kPinnedStamp - 1);
  const int64_t threshold = eviction_threshold(group_.slot_stamps, group_.capacity, wanted, newest);
  // Only empty slots share a stamp, and the lowest of them go first. So take only as many slots at the
  // threshold as are still wanted.
  int64_t at_threshold = wanted - count_at_most(group_.slot_stamps, group_.capacity, threshold - 1);
  for (int64_t slot = 0; !newcomers_.empty() && slot < group_.capacity; ++slot) {
    const int64_t stamp = group_.slot_stamps[slot];
    if (stamp > threshold || (stamp == threshold && at_threshold-- <= 0)) continue;
    const int32_t old = group_.active_ids[slot];
    if (old >= 0 && old < group_.vocab_size && group_.token_slots[old] == slot) group_.token_slots[old] = -1;
    const Newcomer newcomer = newcomers_.back();  // the oldest takes the lowest slot
    newcomers_.pop_back();
    group_.active_ids[slot] = static_cast<int32_t>(newcomer.token);
    group_.token_slots[newcomer.token] = static_cast<int32_t>(slot);
    group_.slot_stamps[slot] = newcomer.stamp;
  }
  // A newcomer is left over only if a slot's stamp lies beyond the clock, which no update produces.
  for (const Newcomer& newcomer : newcomers_) group_.token_slots[newcomer.token] = -1;
}

}  // namespace microspec
