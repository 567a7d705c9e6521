// SPDX-License-Identifier: Apache-2.0
// The age of each slot, which decides the slots that newcomers take.
#pragma once

#include "vocab/vocab_state.cuh"

namespace microspec::vocab {

// Returns a slot's age: the number of positions for which it has been idle. The largest age is evicted first.
// 0 means pinned or refreshed in this call. Ages other than 0 are distinct, because only empty slots share a
// stamp. Empty slots are older than every token, and the lowest empty slot is the oldest.
MICROSPEC_DEVICE uint64_t age_of(int64_t stamp, int slot, int64_t base, int capacity) {
  if (stamp >= base && stamp >= 0) return 0;  // compare, do not subtract: no clock makes a pinned slot old
  const int64_t age = stamp < 0 ? wrapping_add(base, capacity - slot) : base - stamp;
  return age > 0 ? static_cast<uint64_t>(age) : 0;
}

// The same order in 32 bits, which halves the registers and the work of every probe. It is exact as long as
// no token's age reaches kTooOld, that is, as every token was seen within the latest two billion positions.
// An empty slot's age is negative if read as an int.
constexpr int kTooOld = 0x7fffffff;
MICROSPEC_DEVICE uint32_t short_age_of(int64_t stamp, int slot, int64_t base) {
  if (stamp < 0) return ~static_cast<uint32_t>(slot + 1);
  if (stamp >= base) return 0;
  const int64_t age = base - stamp;
  return age < kTooOld ? static_cast<uint32_t>(age) : kTooOld;
}

// The slots of one thread, `count` of them, with their ages in registers. A warp's slots are contiguous, and
// a thread has every 32nd of them, so ballots taken one after the other number the slots in ascending order.
//
//     count = 2:   slot    0 … 31    32 … 63    64 … 95    96 … 127   128 …
//                  warp    0         0          1          1          2
//                  lane    0 … 31    0 … 31     0 … 31     0 … 31     0 …
//                  i       0         1          0          1          0
template <int count>
struct Slots {
  using Age = uint32_t;
  // Fetched before the clock is known, as long as there are registers: the stamps (kAhead) and the old ids
  // (kKeepsIds).
  static constexpr bool kAhead = count <= 16;
  static constexpr bool kKeepsIds = count <= 6;
  const Group& group;
  const int first;
  int64_t stamp[kAhead ? count : 1];
  uint32_t age[count];
  int32_t id[kKeepsIds ? count : 1];

  MICROSPEC_DEVICE Slots(const Group& group)
      : group(group), first(warp_index() * count * kWarp + lane_index()) {}

  MICROSPEC_DEVICE int per_thread() const { return count; }
  MICROSPEC_DEVICE int slot(int i) const { return first + i * kWarp; }
  MICROSPEC_DEVICE bool exists(int i) const { return slot(i) < group.capacity; }

  MICROSPEC_DEVICE int64_t read_stamp(int i) const {
    return exists(i) ? group.slot_stamps[slot(i)] : kPinnedStamp;
  }

  // fetch and set_clock are two steps, so that all loads are in flight before the first is waited for.
  MICROSPEC_DEVICE void fetch() {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if constexpr (kAhead) stamp[i] = read_stamp(i);
      if constexpr (kKeepsIds) id[i] = exists(i) ? group.active_ids[slot(i)] : kNone;
    }
  }
  MICROSPEC_DEVICE void set_clock(int64_t clock) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if constexpr (kAhead) {
        age[i] = short_age_of(stamp[i], slot(i), clock);
      } else {
        age[i] = short_age_of(read_stamp(i), slot(i), clock);
        if (i % 8 == 7) __syncwarp();  // limits the loads in flight: more would spill registers
      }
    }
  }
  MICROSPEC_DEVICE void refresh(int i) { age[i] = 0; }
  MICROSPEC_DEVICE int32_t old_id(int i) const {
    if constexpr (kKeepsIds) {
      return id[i];
    } else {
      return group.active_ids[slot(i)];
    }
  }

  // Calls f(i, age) for each slot. Slots beyond the last have age 0.
  template <class F>
  MICROSPEC_DEVICE void each(F&& f) const {
#pragma unroll
    for (int i = 0; i < count; ++i) f(i, age[i]);
  }
  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
    each([&](int, uint32_t key) { f(key); });
  }
};

// Any number of slots, with ages computed from memory each time: for large capacities and for very old
// tokens.
template <>
struct Slots<0> {
  using Age = uint64_t;
  const Group& group;
  const int first;
  int64_t base = 0;

  MICROSPEC_DEVICE Slots(const Group& group)
      : group(group), first(warp_index() * per_thread() * kWarp + lane_index()) {}

  MICROSPEC_DEVICE int per_thread() const { return (group.capacity + kThreads - 1) / kThreads; }
  MICROSPEC_DEVICE int slot(int i) const { return first + i * kWarp; }
  MICROSPEC_DEVICE bool exists(int i) const { return slot(i) < group.capacity; }

  MICROSPEC_DEVICE void fetch() {}
  MICROSPEC_DEVICE void set_clock(int64_t clock) { base = clock; }
  MICROSPEC_DEVICE void refresh(int) {}
  MICROSPEC_DEVICE int32_t old_id(int i) const { return group.active_ids[slot(i)]; }

  template <class F>
  MICROSPEC_DEVICE void each(F&& f) const {
    for (int i = 0; i < per_thread(); ++i) {
      f(i, exists(i) ? age_of(group.slot_stamps[slot(i)], slot(i), base, group.capacity) : 0);
    }
  }
  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
    each([&](int, uint64_t key) { f(key); });
  }
};

}  // namespace microspec::vocab
