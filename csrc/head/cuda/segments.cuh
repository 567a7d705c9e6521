// SPDX-License-Identifier: Apache-2.0
// Segments group the rows of hidden that are projected together. A segment's slots are dealt to several
// blocks, and each takes a StridedRange of them.
#pragma once

#include "cuda/platform.cuh"
#include "head/args.h"
#include "project.h"
#include "rows.cuh"

namespace microspec {

// The rows of a call sorted by group, in shared memory. Only the device knows the groups, so every block
// builds the table itself.
struct SegmentTable {
  int group_of[kMaxRows];      // by row
  int row[kMaxRows];           // by position in sorted order
  int sorted_group[kMaxRows];  // by position
  int leads[kMaxRows];         // by position: whether a segment begins there
  int first[kMaxRows + 1];     // by segment: its first position
  int count;
};

// Up to kWidth rows of one group. Their slots are read once for all of them.
struct Segment {
  const SegmentTable& table;
  bool sorted;  // false: rows first, first + 1, …
  int group;
  int first;
  int count;

  MICROSPEC_DEVICE int row(int i) const { return sorted ? table.row[first + i] : first + i; }
};

// The segments of a call.
class Segments {
 public:
  // The whole block calls this. It ends with a barrier if each row has its own group id.
  template <int kWidth>
  MICROSPEC_DEVICE static Segments of(const HeadArgs& args, SegmentTable* table) {
    Segments segments(args);
    segments.width_ = kWidth;
    segments.total_rows_ = static_cast<int>(args.rows);
    segments.table_ = table;
    segments.sorted_ = args.group_ids && !args.one_group;
    if (segments.sorted_) {
      sort(args, table, kWidth);
      segments.count_ = table->count;
    } else {
      segments.count_ = group_of(args, 0) < 0 ? 0 : ceil_div(segments.total_rows_, kWidth);
    }
    return segments;
  }

  MICROSPEC_DEVICE int count() const { return count_; }

  MICROSPEC_DEVICE Segment operator[](int i) const {
    if (!sorted_) {
      const int first = i * width_;
      // Loaded again, from L1, so that it takes no register from one segment to the next.
      return {*table_, false, group_of(args_, 0), first, min(width_, total_rows_ - first)};
    }
    const int first = table_->first[i];
    return {*table_, true, table_->sorted_group[first], first, table_->first[i + 1] - first};
  }

 private:
  static constexpr int kPadding = 0x7fffffff;  // sorts after every group

  MICROSPEC_DEVICE static void sort(const HeadArgs& args, SegmentTable* table, int width) {
    const int rows = static_cast<int>(args.rows);
    for (int r = threadIdx.x; r < rows; r += blockDim.x) {
      const int group = group_of(args, r);
      table->group_of[r] = group >= 0 ? group : kPadding;
    }
    __syncthreads();
    for (int r = threadIdx.x; r < rows; r += blockDim.x) {
      const int group = table->group_of[r];
      int before = 0, group_start = 0;
#pragma unroll 4
      for (int other = 0; other < rows; ++other) {
        const int other_group = table->group_of[other];
        group_start += other_group < group;
        before += other_group < group || (other_group == group && other < r);
      }
      table->row[before] = r;
      table->sorted_group[before] = group;
      table->leads[before] = group != kPadding && (before - group_start) % width == 0;
    }
    __syncthreads();
    if (warp_index() == 0) {
      int segments = 0, placed = 0;
      for (int base = 0; base < rows; base += kWarp) {
        const int place = base + lane_index();
        const bool inside = place < rows;
        const unsigned leads = __ballot_sync(kAllLanes, inside && table->leads[place]);
        const unsigned real = __ballot_sync(kAllLanes, inside && table->sorted_group[place] != kPadding);
        if (leads >> lane_index() & 1) {
          table->first[segments + __popc(leads & ((1u << lane_index()) - 1))] = place;
        }
        segments += __popc(leads);
        placed += __popc(real);
      }
      if (lane_index() == 0) {
        table->first[segments] = placed;
        table->count = segments;
      }
    }
    __syncthreads();
  }

  MICROSPEC_DEVICE explicit Segments(const HeadArgs& args) : args_(args) {}

  const HeadArgs& args_;
  SegmentTable* table_;
  bool sorted_;  // false: all rows are in one group, and the table is not used
  int count_;
  int width_;
  int total_rows_;
};

// The slots of a segment, or their runs, that one block takes: first, first + step, … below `end`.
struct StridedRange {
  int first;
  int step;
  int end;

  MICROSPEC_DEVICE int count() const { return end > first ? (end - first - 1) / step + 1 : 0; }
  MICROSPEC_DEVICE int at(int i) const { return first + i * step; }
};

// Returns the number of blocks among which a segment's slots are dealt, chosen to keep `blocks` blocks busy.
// A single round gives each segment blocks / segments blocks. That leaves up to half of the blocks idle if
// there are nearly as many segments as blocks. A few rounds, with fewer slots for a block in each, avoid
// that.
MICROSPEC_DEVICE int blocks_per_segment(int segments, int blocks) {
  constexpr int kMaxRounds = 4;
  int best_rounds = ceil_div(segments, blocks), best_blocks = 1;
  for (int rounds = 1; rounds <= kMaxRounds; ++rounds) {
    const int segment_blocks = rounds * blocks / segments;
    if (rounds * best_blocks < best_rounds * segment_blocks) {
      best_rounds = rounds;
      best_blocks = segment_blocks;
    }
  }
  return best_blocks;
}

}  // namespace microspec
