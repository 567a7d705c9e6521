// SPDX-License-Identifier: Apache-2.0
// Advanced SIMD with FEAT_BF16: Neoverse V1, N2, V2 (Grace) and later. BFMMLA multiplies two rows by two
// activations over four elements: 16 products an instruction, against FMLA's four. This file serves bf16
// activations only; other types take the base path.
//
// Registers of one BFMMLA. Each holds two rows of four bf16, or two of two fp32:
//
//       low[r]: rows              x_low: activations             acc[r][c]: sums
//
//       element 0  1  2  3                element 0  1  2  3       activation  2c     2c + 1
//              +------------+                    +------------+               +------+------+
//       row 2r |            |     activation 2c  |            |     row 2r    |      |      |
//              +------------+                    +------------+               +------+------+
//       row    |            |     activation     |            |     row       |      |      |
//       2r + 1 |            |     2c + 1         |            |     2r + 1    |      |      |
//              +------------+                    +------------+               +------+------+
//
// high[r] and x_high hold elements 4 to 7 in the same way.
//
// Why not SDOT or SMMLA for int8 rows: both operands would have to be int8, and the activations are not. bf16
// represents int8 and fp8 exactly, so such rows are widened to bf16, a chunk at a time, once for all
// activations.
//
// Registers: 8 rows * 8 activations take 16 accumulators of 2 x 2, eight registers of rows and two of
// activations: 26 of 32. Per 8 elements that tile takes 16 loads, 8 ZIPs and 32 BFMMLAs for 512 products. A
// Neoverse V2 has four pipes that each take a BFMMLA a cycle. A pipe takes one for the same accumulator four
// cycles later (LLVM's model). So 16 accumulators are just enough to keep the pipes busy.
//
// Floor on Grace (72 cores at about 3 GHz, about 450 GB/s): K = 3072 rows of D = 4096 in bf16 are 25 MB, 56
// us. The tile's 40 vector instructions take 10 cycles for 8 * 8 * 8 products, so M activations take M * 1.1
// us: reading is the limit up to M = 50. int8 rows are half the bytes. Widening 8 elements takes about two
// cycles, hence 12 GB/s a core, and 36 cores reach the floor. Speed was not measured: these kernels were
// tested under an emulator.
//
// Rounding: unless FEAT_EBF16 is switched on (Linux leaves it off), each sum of two products, and each
// addition of it to the accumulator, is rounded to odd. The error is below one ulp instead of half an ulp,
// and has no bias in the mean. Numbers below fp32's smallest normal count as zero.
#include <cstdint>
#include <type_traits>

#include "head/args.h"
#include "kernels.h"
#include "simd_neon.h"

namespace microspec {
namespace neonbf16 {

constexpr int64_t kChunk = NeonVec::kLanes;

#include "panel.inl"
#include "select.inl"
#include "draw.inl"

// ---- Constants
constexpr int kRows = 8;         // rows in a tile
constexpr int kColumnPairs = 4;  // pairs of activations in a tile
constexpr int kStep = 8;         // elements of a row in a register
constexpr int kWidened = 256;    // elements of each row that are widened at a time: 4 KB, which stay in L1

using Rows = const bf16_t* [kRows];

// ---- Step 1: order the activations, once a call
int64_t arranged_rows(int64_t count) { return (count + 1) / 2 * 2; }

// The layout is [pair][four elements][activation][4]. The second activation of the last pair may be zeros.
void arrange(const void* hidden, int64_t count, int64_t stride, void* arranged) {
  const auto source = static_cast<const uint64_t*>(hidden);  // four elements each
  const auto target = static_cast<uint64_t*>(arranged);
  const int64_t fours = stride / 4;
  for (int64_t row = 0; row < arranged_rows(count); ++row) {
    uint64_t* column = target + row / 2 * 2 * fours + row % 2;
    for (int64_t i = 0; i < fours; ++i) column[2 * i] = row < count ? source[row * fours + i] : 0;
  }
}

// ---- Step 2: take elements of the rows as bf16
//
// Returns the upper halves of eight floats, which are bf16 if the floats' lower halves are zero.
inline uint16x8_t join(float32x4_t low, float32x4_t high) {
  return vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high));
}
inline uint16x8_t widen(const bf16_t* p) { return vld1q_u16(reinterpret_cast<const uint16_t*>(p)); }
inline uint16x8_t widen(const int8_t* p) {
  const int16x8_t values = vmovl_s8(vld1_s8(p));
  return join(vcvtq_f32_s32(vmovl_s16(vget_low_s16(values))), vcvtq_f32_s32(vmovl_high_s16(values)));
}
inline uint16x8_t widen(const f8e4m3_t* p) {
  const float16x8_t values = e4m3_as_f16(vld1_s8(reinterpret_cast<const int8_t*>(p)));
  return join(vcvt_f32_f16(vget_low_f16(values)), vcvt_high_f32_f16(values));
}

// Sets `rows` to elements [from, from + returned) of the tile's rows as bf16. Whole steps of bf16 rows are
// used in place; everything else is copied to `copy`. The last step is filled with zeros, so that nothing is
// read past a row's end.
template <class Row>
inline int64_t take(const Row* const (&tile)[kRows], int64_t from, int64_t dim,
                    bf16_t (&copy)[kRows][kWidened], Rows& rows) {
  const int64_t left = dim - from;
  if constexpr (std::is_same_v<Row, bf16_t>) {
    if (left >= kStep) {
      for (int r = 0; r < kRows; ++r) rows[r] = tile[r] + from;
      return left / kStep * kStep;
    }
  }
  const int64_t count = left < kWidened ? left : kWidened;
  for (int r = 0; r < kRows; ++r) {
    rows[r] = copy[r];
    for (int64_t d = 0; d < count; d += kStep) {
      const Row* source = tile[r] + from + d;
      Row padded[kStep] = {};
      if (count - d < kStep) {
        for (int64_t i = 0; i < count - d; ++i) padded[i] = source[i];
        source = padded;
      }
      vst1q_u16(reinterpret_cast<uint16_t*>(copy[r] + d), widen(source));
    }
  }
  return count;
}

// ---- Step 3: multiply
//
// The partial sums of a tile. They wait in the panel's result while the next chunk is widened.
struct Sums {
  float* dots;     // the tile's first row and first activation
  int64_t stride;  // from row to row
  int64_t rows;
  int64_t columns;

  // Loads the sums of two rows and two activations. Missing ones are zero.
  float32x4_t load(int row, int column) const {
    return vcombine_f32(pair(row, column), pair(row + 1, column));
  }
  void store(int row, int column, float32x4_t sums) const {
    store_pair(row, column, vget_low_f32(sums));
    store_pair(row + 1, column, vget_high_f32(sums));
  }

 private:
  float32x2_t pair(int row, int column) const {
    if (row >= rows) return vdup_n_f32(0.0f);
    const float* p = dots + row * stride + column;
    return column + 1 < columns ? vld1_f32(p) : vset_lane_f32(*p, vdup_n_f32(0.0f), 0);
  }
  void store_pair(int row, int column, float32x2_t sums) const {
    if (row >= rows) return;
    float* p = dots + row * stride + column;
    if (column + 1 < columns) return vst1_f32(p, sums);
    *p = vget_lane_f32(sums, 0);
  }
};

// Multiplies `depth` elements (a multiple of kStep) of eight rows by `Pairs` pairs of activations.
template <int Pairs>
inline void multiply(const Rows& rows, int64_t depth, const bfloat16_t* hidden, int64_t pair_stride,
                     bool first, float gain, const Sums& sums) {
  float32x4_t acc[kRows / 2][Pairs];
#pragma GCC unroll 4
  for (int r = 0; r < kRows / 2; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < Pairs; ++c) acc[r][c] = first ? vdupq_n_f32(0.0f) : sums.load(2 * r, 2 * c);
  }
  for (int64_t d = 0; d < depth; d += kStep) {
    bfloat16x8_t low[kRows / 2], high[kRows / 2];  // elements 0-3 and 4-7 of two rows
#pragma GCC unroll 4
    for (int r = 0; r < kRows / 2; ++r) {
      const uint64x2_t one = vreinterpretq_u64_u16(widen(rows[2 * r] + d));
      const uint64x2_t other = vreinterpretq_u64_u16(widen(rows[2 * r + 1] + d));
      low[r] = vreinterpretq_bf16_u64(vzip1q_u64(one, other));
      high[r] = vreinterpretq_bf16_u64(vzip2q_u64(one, other));
    }
#pragma GCC unroll 4
    for (int c = 0; c < Pairs; ++c) {
      const bfloat16_t* x = hidden + c * pair_stride + 2 * d;
      const bfloat16x8_t x_low = vld1q_bf16(x), x_high = vld1q_bf16(x + kStep);
#pragma GCC unroll 4
      for (int r = 0; r < kRows / 2; ++r) {
        acc[r][c] = vbfmmlaq_f32(vbfmmlaq_f32(acc[r][c], low[r], x_low), high[r], x_high);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows / 2; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < Pairs; ++c) sums.store(2 * r, 2 * c, vmulq_n_f32(acc[r][c], gain));
  }
}

// Does the same for `pairs` pairs of activations, 1 <= pairs <= Pairs.
template <int Pairs>
inline void multiply_columns(int64_t pairs, const Rows& rows, int64_t depth, const bfloat16_t* hidden,
                             int64_t pair_stride, bool first, float gain, const Sums& sums) {
  if constexpr (Pairs > 1) {
    if (pairs < Pairs) {
      return multiply_columns<Pairs - 1>(pairs, rows, depth, hidden, pair_stride, first, gain, sums);
    }
  }
  multiply<Pairs>(rows, depth, hidden, pair_stride, first, gain, sums);
}

// ---- The panel kernel: steps 2 and 3 for each eight rows
template <class Row>
void panel_kernel_mmla(const Panel& panel) {
  const int64_t pair_stride = 2 * panel.hidden_stride;
  const int64_t pairs = (panel.hidden_count + 1) / 2;
  // Use blocks of even size: 5 pairs are 3 + 2, not 4 + 1.
  const int64_t blocks = (pairs + kColumnPairs - 1) / kColumnPairs;
  const int64_t width = (pairs + blocks - 1) / blocks;
  bf16_t copy[kRows][kWidened];
  for (int64_t row = 0; row < panel.row_count; row += kRows) {
    const int64_t count = panel.row_count - row < kRows ? panel.row_count - row : kRows;
    const Row* tile[kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      // In a short last tile, the first row stands in for the missing rows, and their results are not stored.
      tile[r] = reinterpret_cast<const Row*>(panel.rows[row + (r < count ? r : 0)]);
      // The hardware prefetcher stops at the end of a row, so prefetch the next rows' first lines.
      if (row + kRows + r < panel.row_count) __builtin_prefetch(panel.rows[row + kRows + r]);
    }
    int64_t from = 0;
    do {  // also once for D = 0, to write the zeros
      Rows rows;
      const int64_t taken = take(tile, from, panel.dim, copy, rows);
      const int64_t depth = (taken + kStep - 1) / kStep * kStep;
      const float gain = from + taken < panel.dim ? 1.0f : NeonVec::gain(Row{});
      for (int64_t pair = 0; pair < pairs; pair += width) {
        const auto hidden = static_cast<const bfloat16_t*>(panel.hidden) + pair * pair_stride + 2 * from;
        const Sums sums{panel.dots + row * panel.hidden_count + 2 * pair, panel.hidden_count, count,
                        panel.hidden_count - 2 * pair};
        multiply_columns<kColumnPairs>(pairs - pair < width ? pairs - pair : width, rows, depth, hidden,
                                       pair_stride, from == 0, gain, sums);
      }
      from += taken;
    } while (from < panel.dim);
  }
}

template <class Row>
HeadKernel mmla_head() {
  return {panel_kernel_mmla<Row>, DType::bf16, arrange, arranged_rows};
}

HeadKernel head(DType weight_type, DType hidden_type) {
  if (hidden_type == DType::bf16) {
    switch (weight_type) {
      case DType::bf16: return mmla_head<bf16_t>();
      case DType::i8: return mmla_head<int8_t>();
      case DType::f8e4m3: return mmla_head<f8e4m3_t>();
      default: break;
    }
  }
  return widening_head<NeonVec>(weight_type, hidden_type);
}

}  // namespace neonbf16

const InstructionSet kNeonBf16 = {"neonbf16", neonbf16::head, neonbf16::select, neonbf16::draw};

}  // namespace microspec
