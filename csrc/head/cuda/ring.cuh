// SPDX-License-Identifier: Apache-2.0
// The ring holds runs of weight rows in shared memory for the tensor cores. Asynchronous copies fill it
// several runs ahead of their use.
//
// A run is the block's split of the rows of kRun consecutive slots. Its copies arrive on the run's barrier.
// From sm_90 on, there is one bulk copy a row, which one lane starts after announcing the bytes. Before
// sm_90, all threads use cp.async of 16 bytes, one row a warp. Rows of empty slots are not copied. Old data
// stays in their place and affects only results that nobody reads.
//
// The scales of 4-bit rows travel with their rows and arrive on the same barrier, so no multiplication waits
// for a load of scales alone. They take cp.async of 4 bytes on every GPU: a slot's scales are D / 16 bytes,
// which for D = 2880 is no multiple of the 16 that a bulk copy needs.
//
//     data:    place 0           place 1           …          place depth - 1
//            +-----------------+-----------------+----------+-----------------+
//            | run: kRun rows  | run             |          | run             |
//            +-----------------+-----------------+----------+-----------------+
//              ^ oldest_: take waits for it        ^ start fills it
//
//     a row in a place:  | the split's elements | scales       | kRowPad bytes |  = row_pitch bytes
#pragma once

#include "cuda/elements.cuh"
#include "cuda/ptx.cuh"
#include "project.h"
#include "rows.cuh"

namespace microspec {

// 0 selects cp.async on every GPU. One lane issues a bulk copy; every thread issues cp.async.
#ifndef MICROSPEC_BULK_COPIES
#define MICROSPEC_BULK_COPIES 1
#endif

constexpr int kRingWarps = 8;  // warps in a block, and rows in a run
constexpr int kMaxDepth = 32;  // runs in the ring
static_assert(kRingWarps == kRun);

// Padding after each row. The distance between rows is 64 bytes more than a multiple of 128, so eight lanes
// that read 16 bytes each from two rows hit every bank once. Of 4-bit rows, 32 lanes read 4 bytes each from
// eight rows: the distance is an odd multiple of 16 bytes.
template <class Row>
constexpr int kRowPad = kIs4Bit<Row> ? 16 : 64;

// The elements of D that a block multiplies: [begin, begin + dim).
struct Split {
  unsigned begin;
  int dim;
};

// A place in the ring, and the parity of its barrier phase.
struct RingPlace {
  int index = 0;
  uint32_t parity = 0;

  MICROSPEC_DEVICE void advance(int depth) {
    if (++index == depth) {
      index = 0;
      parity ^= 1;
    }
  }
};

// The ring of one block. start and take are called by the whole block, run after run.
template <class Row>
class Ring {
 public:
  // full is [depth] barriers, data is [depth, kRun, row_pitch]. Ends with a block barrier.
  MICROSPEC_DEVICE Ring(const HeadArgs& args, const Split& split, const MmaPlan& plan, uint64_t* full,
                        unsigned char* data)
      : args_(args), split_(split), plan_(plan), full_(full), data_(data) {
    if (threadIdx.x == 0) {
      // One of the lane that announces the bytes, and one of each thread that uses cp.async.
      const int arrivals = !bulk() ? kRingWarps * kWarp : kIs4Bit<Row> ? 1 + kWarp : 1;
#pragma unroll 1
      for (int i = 0; i < plan.depth; ++i) ptx::mbarrier_init(full + i, arrivals);
      ptx::mbarrier_init_fence();
    }
    __syncthreads();
  }

  // Loads the ids of the slots of two runs, -1: none, into lanes 0 to 7 and 8 to 15. Other lanes, and slots
  // beyond the last, have -1.
  MICROSPEC_DEVICE int32_t load_ids(int group, int first, int second) const {
    const int run = lane_index() < kRun ? first : lane_index() < 2 * kRun ? second : -1;
    return run < 0 ? -1 : id_of(group, run * kRun + lane_index() % kRun);
  }

  // Starts to copy a run, which `ahead` runs are taken before. The whole block calls it, after all threads
  // have finished with the run that held the place before. `ids` are load_ids', of which the run is the first
  // (0) or the second (1).
  MICROSPEC_DEVICE void start(int group, int run, int ahead, int32_t ids, int which) {
    const int place = place_after(ahead);
    if (!bulk()) {
      start_by_threads(group, run, place, __shfl_sync(kAllLanes, ids, which * kRun + warp_index()));
    } else if (is_mine(place)) {
      start_bulk(group, run, place, __shfl_sync(kAllLanes, ids, which * kRun + lane_index() % kRun));
    }
  }

  // The same, where the ids are not loaded yet. The warps that copy load them.
  MICROSPEC_DEVICE void start(int group, int run, int ahead) {
    const int place = place_after(ahead);
    if (!bulk()) {
      start_by_threads(group, run, place, id_of(group, run * kRun + warp_index()));
    } else if (is_mine(place)) {
      start_bulk(group, run, place, id_of(group, run * kRun + lane_index() % kRun));
    }
  }

  // Waits for the oldest run not yet taken and returns its first row in shared memory.
  MICROSPEC_DEVICE const unsigned char* take() {
    ptx::mbarrier_wait(full_ + oldest_.index, oldest_.parity);
    const unsigned char* run = data_of(oldest_.index);
    oldest_.advance(plan_.depth);
    return run;
  }

 private:
  MICROSPEC_DEVICE static bool bulk() { return MICROSPEC_BULK_COPIES && MICROSPEC_ARCH >= 900; }
  // The place of the run that `ahead` runs are taken before. It is computed, because a place kept beside
  // oldest_ takes a register that 64 rows of hidden do not leave.
  MICROSPEC_DEVICE int place_after(int ahead) const {
    const int place = oldest_.index + ahead;
    return place < plan_.depth ? place : place - plan_.depth;
  }
  // The warps take turns with bulk copies, by place, so that what they wait for overlaps.
  MICROSPEC_DEVICE static bool is_mine(int place) { return place % kRingWarps == warp_index(); }
  MICROSPEC_DEVICE unsigned char* data_of(int place) const {
    return data_ + static_cast<int64_t>(place) * kRun * plan_.row_pitch;
  }
  MICROSPEC_DEVICE int32_t id_of(int group, int slot) const {
    return slot < args_.capacity ? ids_of(args_, group)[slot] : -1;
  }
  MICROSPEC_DEVICE const Row* source(int group, int slot, int32_t id) const {
    return row_of<Row>(args_, group, slot, id) + ptx::computed_here(split_.begin) / kColumns<Row>;
  }
  MICROSPEC_DEVICE int row_bytes() const {
    return split_.dim / kColumns<Row> * static_cast<int>(sizeof(Row));
  }

  // `id` is that of slot lane % kRun of the run.
  MICROSPEC_DEVICE void start_bulk(int group, int run, int place, int32_t id) {
    const uint32_t bytes = row_bytes();
    const int slot = run * kRun + lane_index();
    const bool active = lane_index() < kRun && is_active(args_, id);
    const uint32_t rows = __popc(__ballot_sync(kAllLanes, active));
    if (lane_index() == 0) ptx::mbarrier_arrive_expect(full_ + place, rows * bytes);
    __syncwarp();
    if (active) {
      ptx::bulk_copy(data_of(place) + lane_index() * plan_.row_pitch, source(group, slot, id), bytes,
                     full_ + place);
    }
    if constexpr (kIs4Bit<Row>) {
#pragma unroll 1
      for (int i = 0; i < kRun; ++i) start_scales(group, run, place, i, __shfl_sync(kAllLanes, id, i));
      ptx::cp_async_arrive(full_ + place);
    }
  }

  // `id` is that of the warp's slot of the run.
  MICROSPEC_DEVICE void start_by_threads(int group, int run, int place, int32_t id) {
    const int bytes = row_bytes();
    const int slot = run * kRun + warp_index();
    if (is_active(args_, id)) {
      const auto* row = reinterpret_cast<const unsigned char*>(source(group, slot, id));
      unsigned char* target = data_of(place) + warp_index() * plan_.row_pitch;
      for (int at = lane_index() * 16; at < bytes; at += kWarp * 16) ptx::cp_async16(target + at, row + at);
    }
    if constexpr (kIs4Bit<Row>) start_scales(group, run, place, warp_index(), id);
    ptx::cp_async_arrive(full_ + place);
  }

  // A warp calls this for row i of a run. A copy takes the scales of a chunk.
  MICROSPEC_DEVICE void start_scales(int group, int run, int place, int i, int32_t id) {
    if (!is_active(args_, id)) return;
    const auto* row = group_scales_of<unsigned char>(args_, group, run * kRun + i, id);
    const unsigned char* scales = row + scale_bytes(split_.begin);
    unsigned char* target = data_of(place) + i * plan_.row_pitch + plan_.scales_at;
    const int bytes = static_cast<int>(scale_bytes(split_.dim));
#pragma unroll 1
    for (int at = lane_index() * 4; at < bytes; at += kWarp * 4) ptx::cp_async4(target + at, scales + at);
  }

  const HeadArgs& args_;
  const Split split_;
  const MmaPlan& plan_;
  uint64_t* full_;
  unsigned char* data_;
  RingPlace oldest_;  // the place to take next
};

}  // namespace microspec
