// SPDX-License-Identifier: Apache-2.0
// copy_rows_kernel copies the rows of the slots whose id changed. for_each_changed is common to every gather
// kernel.
//
// A step of speculative decoding changes about 20 to 200 of 3072 slots; a new prompt changes all of them. A
// step is a chain of latencies (ids 0.7 µs, row 1 µs, store), so the kernel must add no further loads to the
// chain, and each changed row should get its own block. A new prompt is limited by bandwidth. Both need a
// grid of as many blocks as fit on the device. The slots are dealt out one by one: changed slots are often
// adjacent, and so land on different SMs. With many groups a block has hundreds of slots. Then they are dealt
// out in eights: a lane's ids are in one 32-byte sector with its neighbours', which reads an eighth of the
// sectors.
//
// The slots of G blocks. A block compares 32 slots at once, one a lane, then its threads together move the
// changed rows one after the other:
//
//     slot    0   1   …   G - 1    G   G + 1   …   2 G - 1    …
//     block   0   1   …   G - 1    0   1       …   G - 1      …
//     lane    0   0   …   0        1   1       …   1          …
//
// In eights, block b takes slots 8 b to 8 b + 7, then 8 (b + G) to 8 (b + G) + 7, …
//
// Not yet measured on a GPU.
#pragma once

#include <type_traits>

#include "cuda/block_reduce.cuh"
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "gather/args.h"

namespace microspec::gather {

// A row of 8 KB (4096 elements of 16 bits) is one pass of a block: kPass loads of 16 bytes a thread, all
// issued before the first store.
constexpr int kThreads = 128;
constexpr int kPass = 4;
// Blocks on an SM. 96 KB of such rows are in flight, more than latency times bandwidth needs (about 40 KB on
// an H100), in 42 registers a thread. 1536 threads are also the limit of sm_86 and sm_89.
constexpr int kResident = 12;
// Of kernels of 4-bit rows, which need a few registers more.
constexpr int kResident4Bit = 10;

// ---- Step 1: find the changed slots
//
// How the slots are dealt out to the blocks: in runs of 2^log_run.
struct Deal {
  int slots;
  int log_run;

  // The block's slot number i; at or above `slots`: none.
  MICROSPEC_DEVICE int slot(int i) const {
    const int run = static_cast<int>(blockIdx.x) + (i >> log_run) * static_cast<int>(gridDim.x);
    return (run << log_run) + (i & ((1 << log_run) - 1));
  }
};

// Runs of eight where every block has at least four of them, one for each eight of a warp's lanes.
inline Deal deal(int slots, int64_t blocks) { return {slots, slots >= blocks * kWarp ? 3 : 0}; }

// Calls bring(slot, id), in the whole block, for each of the block's slots that needs a new row. Also writes
// the slab's ids, and the scales of quantised rows that are copied. An id outside [0, V) is an empty slot and
// is stored as -1, so that a head that reads the slab need not know V.
template <class Bring>
MICROSPEC_DEVICE void for_each_changed(const GatherArgs& args, const Deal& deal, Bring&& bring) {
  const int slots = deal.slots;
  for (int first = 0; deal.slot(first) < slots; first += kWarp) {
    // Every warp compares for itself, so that no barrier precedes the rows.
    const int slot = deal.slot(first + lane_index());
    const int32_t wanted = slot < slots ? args.active_ids[slot] : -1;
    const int32_t id = wanted >= 0 && wanted < args.vocab_size ? wanted : -1;
    const bool changed = slot < slots && args.slab_ids[slot] != id;
    const bool has_row = changed && id >= 0;
    if (__ballot_sync(kAllLanes, changed) == 0) continue;
    for (unsigned rows = __ballot_sync(kAllLanes, has_row); rows != 0; rows &= rows - 1) {
      const int lane = __ffs(static_cast<int>(rows)) - 1;
      bring(deal.slot(first + lane), __shfl_sync(kAllLanes, id, lane));
    }
    __syncthreads();  // every warp has compared
    if (warp_index() == 0 && changed) {
      args.slab_ids[slot] = id;
      if (has_row && args.weight_scale) args.slab_scale[slot] = args.weight_scale[id];
    }
  }
}

// ---- Step 2: copy a row

MICROSPEC_DEVICE uint4 load_word(const uint4* word) { return ptx::load_once16(word); }
MICROSPEC_DEVICE uint32_t load_word(const uint32_t* word) { return *word; }
MICROSPEC_DEVICE uint8_t load_word(const uint8_t* word) { return *word; }

// The copy of a row's scales of 4-bit columns. The first loads are in flight together with the row's, so they
// add nothing to the chain: of 4096 columns, a thread has one scale (i4) or two (e2m1).
template <class Scale>
struct ScaleCopy {
  static constexpr int kAhead = sizeof(Scale) == 1 ? 2 : 1;
  const Scale* from;
  Scale* to;
  int groups;
  Scale first[kAhead];

  MICROSPEC_DEVICE ScaleCopy(const GatherArgs& args, int slot, int32_t id)
      : groups(static_cast<int>(scale_bytes(args.dim) / sizeof(Scale))) {
    from = static_cast<const Scale*>(args.weight_group_scale) + int64_t{id} * groups;
    to = static_cast<Scale*>(args.slab_group_scale) + int64_t{slot} * groups;
  }
  MICROSPEC_DEVICE void fetch_first() {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int i = a * kThreads + static_cast<int>(threadIdx.x);
      if (i < groups) first[a] = from[i];
    }
  }
  MICROSPEC_DEVICE void store() const {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int i = a * kThreads + static_cast<int>(threadIdx.x);
      if (i < groups) to[i] = first[a];
    }
#pragma unroll 1
    for (int i = kAhead * kThreads + threadIdx.x; i < groups; i += kThreads) to[i] = from[i];
  }
};

// Rows that are not of 4 bits have no such scales.
template <>
struct ScaleCopy<void> {
  MICROSPEC_DEVICE ScaleCopy(const GatherArgs&, int, int32_t) {}
  MICROSPEC_DEVICE void fetch_first() {}
  MICROSPEC_DEVICE void store() const {}
};

// A row is `words` long. Rows are `weight_stride` words apart in the weight. Scale: the type of the scales of
// 4-bit rows, which are copied too; void for other rows.
template <class Word, class Scale>
MICROSPEC_KERNEL(kThreads, std::is_void_v<Scale> ? kResident : kResident4Bit)
copy_rows_kernel(GatherArgs args, Deal deal, int words, int64_t weight_stride) {
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  for_each_changed(args, deal, [&](int slot, int32_t id) {
    ScaleCopy<Scale> scales(args, slot, id);
    scales.fetch_first();
    const Word* const source = static_cast<const Word*>(args.weight) + id * weight_stride;
    Word* const target = static_cast<Word*>(args.slab) + int64_t{slot} * words;
#pragma unroll 1  // two passes at once would mix loads and stores
    for (int begin = threadIdx.x; begin < words; begin += kPass * kThreads) {
      const Word* const from = source + begin;
      Word* const to = target + begin;
      const int left = words - begin;
      Word pass[kPass];
#pragma unroll
      for (int i = 0; i < kPass; ++i) {
        if (i * kThreads < left) pass[i] = load_word(from + i * kThreads);
      }
#pragma unroll
      for (int i = 0; i < kPass; ++i) {
        if (i * kThreads < left) to[i * kThreads] = pass[i];
      }
    }
    scales.store();
  });
}

}  // namespace microspec::gather
