// SPDX-License-Identifier: Apache-2.0
// The ring holds runs of weight rows in shared memory for the tensor cores. Asynchronous copies fill it
// several runs ahead of their use.
//
// A run is the block's split of the rows of kRun consecutive slots. Its copies arrive on the run's barrier.
// From sm_90 on, there is one bulk copy a row, which one lane starts after announcing the bytes. Before
// sm_90, all threads use cp.async of 16 bytes, one row a warp. Rows of empty slots are not copied. Old data
// stays in their place and affects only results that nobody reads.
//
//     data:    place 0           place 1           …          place depth - 1
//            +-----------------+-----------------+----------+-----------------+
//            | run: kRun rows  | run             |          | run             |
//            +-----------------+-----------------+----------+-----------------+
//              ^ oldest_: take waits for it        ^ next_: start fills it
//
//     a row in a place:  | the split's elements | kRowPad bytes |  = row_pitch bytes
#pragma once

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
// that read 16 bytes each from two rows hit every bank once.
constexpr int kRowPad = 64;

// The elements of D that a block multiplies: [begin, begin + dim).
struct Split {
  int64_t begin;
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
  MICROSPEC_DEVICE Ring(const HeadArgs& args, const Split& split, int depth, int row_pitch, uint64_t* full,
                        unsigned char* data)
      : args_(args), split_(split), depth_(depth), row_pitch_(row_pitch), full_(full), data_(data) {
    if (threadIdx.x == 0) {
      const int arrivals = bulk() ? 1 : kRingWarps * kWarp;
#pragma unroll 1
      for (int i = 0; i < depth; ++i) ptx::mbarrier_init(full + i, arrivals);
      ptx::mbarrier_init_fence();
    }
    __syncthreads();
  }

  // Starts to copy a run. The whole block calls it, after all threads have finished with the run that held
  // the place before.
  MICROSPEC_DEVICE void start(int group, int run) {
    if (bulk()) {
      // The warps take turns, so that the loads of the runs' ids overlap.
      if (run_count_++ % kRingWarps == warp_index()) start_bulk(group, run);
    } else {
      start_by_threads(group, run);
    }
    next_.advance(depth_);
  }

  // Waits for the oldest run not yet taken and returns its first row in shared memory.
  MICROSPEC_DEVICE const unsigned char* take() {
    ptx::mbarrier_wait(full_ + oldest_.index, oldest_.parity);
    const unsigned char* run = place(oldest_.index);
    oldest_.advance(depth_);
    return run;
  }

 private:
  MICROSPEC_DEVICE static bool bulk() { return MICROSPEC_BULK_COPIES && MICROSPEC_ARCH >= 900; }
  MICROSPEC_DEVICE unsigned char* place(int index) const {
    return data_ + static_cast<int64_t>(index) * kRun * row_pitch_;
  }
  MICROSPEC_DEVICE int32_t id_of(int group, int slot) const {
    return slot < args_.capacity ? __ldg(ids_of(args_, group) + slot) : -1;
  }
  MICROSPEC_DEVICE const Row* source(int group, int slot, int32_t id) const {
    return row_of<Row>(args_, group, slot, id) + split_.begin;
  }

  MICROSPEC_DEVICE void start_bulk(int group, int run) {
    const uint32_t bytes = split_.dim * sizeof(Row);
    const int slot = run * kRun + lane_index();
    const int32_t id = lane_index() < kRun ? id_of(group, slot) : -1;
    const bool active = is_active(args_, id);
    const uint32_t rows = __popc(__ballot_sync(kAllLanes, active));
    if (lane_index() == 0) ptx::mbarrier_arrive_expect(full_ + next_.index, rows * bytes);
    __syncwarp();
    if (active) {
      ptx::bulk_copy(place(next_.index) + lane_index() * row_pitch_, source(group, slot, id), bytes,
                     full_ + next_.index);
    }
  }

  MICROSPEC_DEVICE void start_by_threads(int group, int run) {
    const int bytes = split_.dim * static_cast<int>(sizeof(Row));
    const int slot = run * kRun + warp_index();
    const int32_t id = id_of(group, slot);
    if (is_active(args_, id)) {
      const auto* row = reinterpret_cast<const unsigned char*>(source(group, slot, id));
      unsigned char* target = place(next_.index) + warp_index() * row_pitch_;
      for (int at = lane_index() * 16; at < bytes; at += kWarp * 16) ptx::cp_async16(target + at, row + at);
    }
    ptx::cp_async_arrive(full_ + next_.index);
  }

  const HeadArgs& args_;
  const Split split_;
  const int depth_;
  const int row_pitch_;
  uint64_t* full_;
  unsigned char* data_;
  RingPlace next_;    // the place to fill next
  RingPlace oldest_;  // the place to take next
  int run_count_ = 0;
};

}  // namespace microspec
