// SPDX-License-Identifier: Apache-2.0
// WarpTile for rows of 4 bits. The fragments are those of warp_tile.cuh; what differs is how codes reach
// them, and the scales.
//
// A quad reads 32 columns of a row, 16 bytes, one word of eight codes a lane. They make two multiplications:
//
//     column          0          8          16         24        31
//                     |  t = 0   |  t = 1   |  t = 2   |  t = 3   |
//
//     The word of lane t, as pairs (unpack_pairs); hidden's pairs have the same columns:
//
//     column 8t +     |   0, 4   |   1, 5   |   2, 6   |   3, 7   |
//     first mma: k =   2t,2t+1    2t+8,2t+9
//     second mma: k =                        2t,2t+1    2t+8,2t+9
//
// i4 rows have one scale for these 32 columns. One multiplication adds over the columns of a quad's four
// lanes, so these have the same scale. The codes are exact in bf16 and fp16. The two multiplications sum a
// group's products from zero, and four fp32 multiply-adds a lane add this sum times the slot's scale to the
// dot products. Alternatives that lose:
// - Scaled codes as operand a: a code times a scale has 11 significant bits, bf16 has 8. Two bf16 for each
//   would be exact, and double the multiplications, which are the limit at 64 rows of hidden.
// - 16 bytes a lane: each lane would read its own group, and a multiplication would add over four scales.
// - ldmatrix: one instead of four loads of codes, 3 of 81 instructions, with as many wavefronts.
// For 16 slots and 64 columns a warp runs 6 shared-memory loads, 44 instructions to decode, 4 to widen
// scales, and for every 8 rows of hidden 4 multiplications and 8 multiply-adds.
//
// e2m1 rows have a scale for each 16 columns: one for lanes 0 and 1, one for lanes 2 and 3. A code times its
// scale has six significant bits, which bf16 and fp16 hold exactly. So operand a is the product, and the
// multiplications add to the dot products at once. A power of two is left over (kE2m1Left), by which the
// dot products are multiplied at the end.
#pragma once

#include "warp_tile.cuh"

namespace microspec {

template <class Hidden, class Row, int kTiles>
class FourBitTile {
  using S = WarpShape<Row, kTiles>;
  static constexpr int kGroup = static_cast<int>(kScaleGroup);  // columns that a quad reads at once
  static constexpr int kGroups = kChunk<Row> / kGroup;          // in a chunk
  static constexpr int kPairs = 4;                              // of a lane's word: its part of a group
  static_assert(kGroup == 4 * 2 * kPairs && S::kWords == kGroups * kPairs);
  static_assert(kGroup == 2 * static_cast<int>(kE2m1Group));

 public:
  MICROSPEC_DEVICE FourBitTile(const Split& split, const MmaPlan& plan)
      : split_(split),
        plan_(plan),
        first_(warp_index() * plan.warp_dim),
        chunks_(warp_chunks<Row>(first_, split, plan)) {}

  // Step 2: loads the b fragments into registers. Rows beyond the segment and elements beyond D are zero.
  MICROSPEC_DEVICE void load_hidden(const HeadArgs& args, const Segment& segment) {
    const int begin = ptx::computed_here(first_) + split_.begin + lane_index() % 4 * 2 * kPairs;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int m = n * kTile + lane_index() / 4;
      const bool is_row = m < segment.count;
      const auto* row = static_cast<const Hidden*>(args.hidden) +
                        (is_row ? segment.row(m) * args.hidden_row_stride : 0) + begin;
#pragma unroll
      for (int c = 0; c < S::kChunksPerWarp; ++c) {
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          load_hidden16(row + c * kChunk<Row> + i * kGroup, is_row && c < chunks_,
                        hidden_[n][c] + i * kPairs);
        }
      }
    }
    // Only now, so that all loads are in flight at once.
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int c = 0; c < S::kChunksPerWarp; ++c) {
#pragma unroll
        for (int i = 0; i < kGroups; ++i) pair_columns(hidden_[n][c] + i * kPairs);
      }
    }
  }

  // Step 3: adds the products to `dots`. `low` and `high` are runs in shared memory: slots 0 to 7 and 8 to 15
  // of the tile.
  MICROSPEC_DEVICE void multiply(const unsigned char* low, const unsigned char* high, int row_pitch,
                                 float (&dots)[kTiles][4]) const {
    const int row = lane_index() / 4 * row_pitch;
    const int codes = row + first_ / 2 + lane_index() % 4 * static_cast<int>(sizeof(uint32_t));
    const int scales = row + plan_.scales_at + first_ / kChunk<Row> * kScaleBytes;
#pragma unroll
    for (int c = 0; c < S::kChunksPerWarp; ++c) {
      if (c >= chunks_) break;
      const uint32_t low_scales = word(low + scales + c * kScaleBytes);
      const uint32_t high_scales = word(high + scales + c * kScaleBytes);
      if constexpr (kIsInt4<Row>) {
        multiply_int4(low + codes, low_scales, high + codes, high_scales, c, dots);
      } else {
        multiply_e2m1(low + codes, low_scales, high + codes, high_scales, c, dots);
      }
    }
    if constexpr (kIsE2m1<Row>) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (float& dot : dots[n]) dot *= kE2m1Left<Hidden>;
      }
    }
  }

 private:
  MICROSPEC_DEVICE static uint32_t word(const unsigned char* at) {
    return *reinterpret_cast<const uint32_t*>(at);
  }

  // Adds a chunk's products. `low` and `high` are the lane's codes of its two slots.
  MICROSPEC_DEVICE void multiply_int4(const unsigned char* low, uint32_t low_word, const unsigned char* high,
                                      uint32_t high_word, int chunk, float (&dots)[kTiles][4]) const {
    float low_scales[kGroups], high_scales[kGroups];
    Elements<bf16_t>::unpack(low_word, low_scales);
    Elements<bf16_t>::unpack(high_word, high_scales);
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int at = (chunk * kGroups + i) * kGroup / 2;
      uint32_t low_pairs[kPairs], high_pairs[kPairs];
      unpack_pairs<Hidden>(word(low + at), low_pairs);
      unpack_pairs<Hidden>(word(high + at), high_pairs);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        float sums[4] = {};
        multiply_group(low_pairs, high_pairs, hidden_[n][chunk] + i * kPairs, sums);
        dots[n][0] = fmaf(sums[0], low_scales[i], dots[n][0]);
        dots[n][1] = fmaf(sums[1], low_scales[i], dots[n][1]);
        dots[n][2] = fmaf(sums[2], high_scales[i], dots[n][2]);
        dots[n][3] = fmaf(sums[3], high_scales[i], dots[n][3]);
      }
    }
  }

  MICROSPEC_DEVICE void multiply_e2m1(const unsigned char* low, uint32_t low_word, const unsigned char* high,
                                      uint32_t high_word, int chunk, float (&dots)[kTiles][4]) const {
    // The lane's scales of both groups are bytes h and h + 2 of a word, with h = t / 2.
    const uint32_t selector = 0x2404u + lane_index() % 4 / 2 * 0x1010u;
    const uint32_t low_scales = scales_of_e4m3x2<Hidden>(__byte_perm(low_word, 0, selector));
    const uint32_t high_scales = scales_of_e4m3x2<Hidden>(__byte_perm(high_word, 0, selector));
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const int at = (chunk * kGroups + i) * kGroup / 2;
      const uint32_t both = i == 0 ? 0x1010u : 0x3232u;  // a half of the pair of scales, twice
      uint32_t low_pairs[kPairs], high_pairs[kPairs];
      unpack_scaled_pairs<Hidden>(word(low + at), __byte_perm(low_scales, 0, both), low_pairs);
      unpack_scaled_pairs<Hidden>(word(high + at), __byte_perm(high_scales, 0, both), high_pairs);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        multiply_group(low_pairs, high_pairs, hidden_[n][chunk] + i * kPairs, dots[n]);
      }
    }
  }

  // Adds the products of a group's 32 columns, in two multiplications.
  MICROSPEC_DEVICE static void multiply_group(const uint32_t (&low)[kPairs], const uint32_t (&high)[kPairs],
                                              const uint32_t* hidden_pairs, float (&sums)[4]) {
#pragma unroll
    for (int p = 0; p < kPairs; p += 2) {
      const uint32_t weights[4] = {low[p], high[p], low[p + 1], high[p + 1]};
      const uint32_t hidden[2] = {hidden_pairs[p], hidden_pairs[p + 1]};
      multiply_add<Hidden>(sums, weights, hidden);
    }
  }

  // Turns columns 0, 1 | 2, 3 | 4, 5 | 6, 7 of a lane's part of a group to 0, 4 | 1, 5 | 2, 6 | 3, 7.
  MICROSPEC_DEVICE static void pair_columns(uint32_t* words) {
    const uint32_t first[2] = {words[0], words[1]}, second[2] = {words[2], words[3]};
    for (int i = 0; i < 2; ++i) {
      words[2 * i] = __byte_perm(first[i], second[i], 0x5410);
      words[2 * i + 1] = __byte_perm(first[i], second[i], 0x7632);
    }
  }

  static constexpr int kScaleBytes = sizeof(uint32_t);  // of a chunk

  const Split& split_;
  const MmaPlan& plan_;
  int first_;  // the warp's first column of the split
  int chunks_;
  uint32_t hidden_[kTiles][S::kChunksPerWarp][S::kWords];
};

template <class Hidden, int kTiles>
class WarpTile<Hidden, i4x2_t, kTiles> : public FourBitTile<Hidden, i4x2_t, kTiles> {
 public:
  using FourBitTile<Hidden, i4x2_t, kTiles>::FourBitTile;
};
template <class Hidden, int kTiles>
class WarpTile<Hidden, f4e2m1x2_t, kTiles> : public FourBitTile<Hidden, f4e2m1x2_t, kTiles> {
 public:
  using FourBitTile<Hidden, f4e2m1x2_t, kTiles>::FourBitTile;
};

// A load reads eight rows: a word of codes a lane, or a word of scales for four lanes. The distance of rows
// is an odd multiple of 16 bytes, however many chunks a warp takes.
constexpr int pitch_words_4bit(int chunks) {
  return (kRingWarps * chunks * (kChunk<i4x2_t> / 2 + kChunk<i4x2_t> / 16) + kRowPad<i4x2_t>) / 4;
}
static_assert(wavefronts<1>([](int lane) { return lane / 4 * pitch_words_4bit(1) + lane % 4; }) == 1);
static_assert(wavefronts<1>([](int lane) { return lane / 4 * pitch_words_4bit(8) + lane % 4; }) == 1);
static_assert(wavefronts<1>([](int lane) { return lane / 4 * pitch_words_4bit(8); }) == 1);

}  // namespace microspec
