// SPDX-License-Identifier: Apache-2.0
// WarpTile is one warp's part of project_mma. It holds the warp's elements of hidden in registers and
// multiplies them by sixteen slots at a time. warp_tile_4bit.cuh has the one for rows of 4 bits.
//
// Fragment layout. One mma multiplies 16 slots (m) by 8 rows of hidden (n) over 16 elements of D (k). Slots 0
// to 7 come from the `low` run, slots 8 to 15 from the `high` run. Lane 4g + t (g = 0..7, t = 0..3) holds:
//
//     a: weights                        b: hidden                d: dot products
//
//       k =   2t,2t+1   2t+8,2t+9               row g              row =   2t   2t+1
//              +------+------+                 +------+                  +------+------+
//     slot g   | a[0] | a[2] |      k = 2t,+1  | b[0] |      slot g     | d[0] | d[1] |
//              +------+------+                 +------+                  +------+------+
//     slot g+8 | a[1] | a[3] |    k = 2t+8,+9  | b[1] |      slot g+8   | d[2] | d[3] |
//              +------+------+                 +------+                  +------+------+
//
// An a[i] or b[i] is one 32-bit register with two elements; a d[i] is one fp32.
//
// Any mapping of k to elements of D gives the same sum, as long as weights and hidden use the same one. So
// the four lanes of a quad read 64 consecutive bytes of a row (a chunk), 16 bytes a lane, and each
// lane feeds its words to the multiplications in pairs:
//
//     64 bytes of a row, 16-bit elements (kChunk = 32):
//
//       element         0          8          16         24        31
//                       |  t = 0   |  t = 1   |  t = 2   |  t = 3   |
//
//     The 16 bytes of lane t, two elements a word:
//
//                       |  word 0  |  word 1  |  word 2  |  word 3  |
//       first mma: k =   2t,2t+1    2t+8,2t+9
//       second mma: k =                        2t,2t+1    2t+8,2t+9
//
// With 8-bit elements kChunk is 64. The 16 bytes become eight words in hidden's type and feed four
// multiplications. This needs one 16-byte load instead of four 4-byte loads, both for weights in shared
// memory and for hidden in global memory, and no ldmatrix.
#pragma once

#include "cuda/banks.cuh"
#include "cuda/elements.cuh"
#include "plan.h"
#include "project.h"
#include "ring.cuh"
#include "rows.cuh"
#include "segments.cuh"

namespace microspec {

// ---- Constants and shapes
constexpr int kHiddenRegisters = 128;
// kTile is the number of hidden rows in a tile (mma's n). kSlots is the number of slots (mma's m) in the sums
// in shared memory. Their pitch has 4 floats of padding, which lets 32 lanes store to 32 banks (sum_index).
constexpr int kTile = 8;
constexpr int kSlots = 2 * kRun;
constexpr int kSlotsPitch = kSlots + 4;

// The elements of D in a chunk: what the four lanes of a quad read at once from a row. They make two (16-bit)
// or four (8-bit) multiplications of sixteen. Of 4-bit rows, a chunk has the columns of a word of scales, two
// bf16 or four e4m3, also four multiplications.
template <class Row>
constexpr int kChunk = kIs4Bit<Row> ? 2 * static_cast<int>(kScaleGroup) : 4 * kVector<Row>;

// The sizes of a warp's fragments and of the warps' sums.
template <class Row, int kTiles>
struct WarpShape {
  static constexpr int kWidth = kTile * kTiles;  // rows of hidden
  // A lane's words of hidden in each chunk of a row, two elements a word.
  static constexpr int kWords = kChunk<Row> / 8;
  // Chunks of D that a warp's registers hold.
  static constexpr int kChunksPerWarp = kHiddenRegisters / (kTiles * kWords);
  static constexpr int kSums = kRingWarps * kWidth * kSlotsPitch;  // floats in shared memory
};

// The place of a lane's first d register in the sums of a tile of hidden rows.
constexpr int sum_index(int lane) { return lane % 4 * 2 * kSlotsPitch + lane / 4; }
static_assert(wavefronts<1>(sum_index) == 1);

// ---- Instructions by hidden's type
// Multiplies 16 slots by 8 rows of hidden over 16 elements, and adds to `sums`.
template <class Hidden>
MICROSPEC_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&weights)[4],
                                   const uint32_t (&hidden)[2]) {
  if constexpr (std::is_same_v<Hidden, bf16_t>) {
    ptx::mma_bf16(sums, weights, hidden);
  } else {
    ptx::mma_f16(sums, weights, hidden);
  }
}

// Converts a lane's 16 bytes of a row to pairs in hidden's type. The conversion is exact, because e4m3 and
// int8 have fewer significant bits than bf16 and fp16.
template <class Hidden, class Row>
MICROSPEC_DEVICE void as_pairs(const uint4& words, uint32_t (&pairs)[kVector<Row> / 2]) {
  if constexpr (sizeof(Row) == 2) {
    pairs[0] = words.x;
    pairs[1] = words.y;
    pairs[2] = words.z;
    pairs[3] = words.w;
  } else {
    float values[kVector<Row>];
    unpack16<Row>(words, values);
#pragma unroll
    for (int i = 0; i < kVector<Row> / 2; ++i) {
      pairs[i] = Elements<Hidden>::pack(values[2 * i], values[2 * i + 1]);
    }
  }
}

// ---- Steps 2 to 4: one warp's elements of D, for sixteen slots and kWidth rows of hidden
// Returns the chunks from element `first` of a split on that a warp multiplies. The last warps may have fewer
// than the others, or none.
template <class Row>
MICROSPEC_DEVICE int warp_chunks(int first, const Split& split, const MmaPlan& plan) {
  return max(0, min(plan.warp_dim, split.dim - first)) / kChunk<Row>;
}

// Loads 16 bytes of hidden into four registers; zeros if `exists` is false.
template <class Hidden>
MICROSPEC_DEVICE void load_hidden16(const Hidden* source, bool exists, uint32_t* registers) {
  uint4 words = make_uint4(0, 0, 0, 0);
  if (exists) words = *reinterpret_cast<const uint4*>(source);
  registers[0] = words.x;
  registers[1] = words.y;
  registers[2] = words.z;
  registers[3] = words.w;
}

// Step 4: writes the d fragments to a warp's sums, [kWidth, kSlotsPitch].
template <int kTiles>
MICROSPEC_DEVICE void store_dots(const float (&dots)[kTiles][4], float* sums) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    float* row = sums + n * kTile * kSlotsPitch + sum_index(lane_index());
    row[0] = dots[n][0];
    row[kSlotsPitch] = dots[n][1];
    row[kRun] = dots[n][2];
    row[kSlotsPitch + kRun] = dots[n][3];
  }
}

// Steps 2 and 3.
template <class Hidden, class Row, int kTiles>
class WarpTile {
  using S = WarpShape<Row, kTiles>;

 public:
  MICROSPEC_DEVICE WarpTile(const Split& split, const MmaPlan& plan)
      : split_(split), first_(warp_index() * plan.warp_dim), chunks_(warp_chunks<Row>(first_, split, plan)) {}

  // Step 2: loads the b fragments into registers. Rows beyond the segment and elements beyond D are zero.
  MICROSPEC_DEVICE void load_hidden(const HeadArgs& args, const Segment& segment) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int m = n * kTile + lane_index() / 4;
      const bool is_row = m < segment.count;
      const auto* row = static_cast<const Hidden*>(args.hidden) +
                        (is_row ? segment.row(m) * args.hidden_row_stride : 0) + split_.begin + first_ +
                        lane_index() % 4 * kVector<Row>;
#pragma unroll
      for (int c = 0; c < S::kChunksPerWarp; ++c) {
#pragma unroll
        for (int w = 0; w < S::kWords; w += 4) {
          load_hidden16(row + c * kChunk<Row> + 2 * w, is_row && c < chunks_, hidden_[n][c] + w);
        }
      }
    }
  }

  // Step 3: adds the products to `dots`. `low` and `high` are runs in shared memory: slots 0 to 7 and 8 to 15
  // of the tile.
  MICROSPEC_DEVICE void multiply(const unsigned char* low, const unsigned char* high, int row_pitch,
                                 float (&dots)[kTiles][4]) const {
    const int first = first_ * static_cast<int>(sizeof(Row));
    const int at = lane_index() / 4 * row_pitch + first + lane_index() % 4 * 16;
#pragma unroll
    for (int c = 0; c < S::kChunksPerWarp; ++c) {
      if (c >= chunks_) break;
      constexpr int kBytes = kChunk<Row> * static_cast<int>(sizeof(Row));
      uint32_t low_pairs[S::kWords], high_pairs[S::kWords];
      as_pairs<Hidden, Row>(ptx::load_shared16(low + at + c * kBytes), low_pairs);
      as_pairs<Hidden, Row>(ptx::load_shared16(high + at + c * kBytes), high_pairs);
#pragma unroll
      for (int w = 0; w < S::kWords; w += 2) {
        const uint32_t weights[4] = {low_pairs[w], high_pairs[w], low_pairs[w + 1], high_pairs[w + 1]};
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const uint32_t hidden[2] = {hidden_[n][c][w], hidden_[n][c][w + 1]};
          multiply_add<Hidden>(dots[n], weights, hidden);
        }
      }
    }
  }

 private:
  const Split& split_;
  int first_;  // the warp's first element of the split
  int chunks_;
  uint32_t hidden_[kTiles][S::kChunksPerWarp][S::kWords];
};

}  // namespace microspec
