// SPDX-License-Identifier: Apache-2.0
// AVX-512 with VDPBF16PS: Cooper Lake, Sapphire Rapids, Zen 4 and later. One instruction adds two products of
// bf16 to each of sixteen lanes.
//
// A lane is a row. 32 rows are transposed, 64 elements at a time, so that a register holds a pair of elements
// of each of sixteen rows. An activation's pair is broadcast to the lanes. So a logit is one lane's sum over
// the pairs in order, for every M, and there are no sums across lanes. The data of a block of rows and
// activations stays in L1. The copy also widens int8 and fp8 rows to bf16, which represents both exactly.
// This file serves bf16 activations only; other types take the AVX-512 path.
//
// Registers of one multiplication, for pair p (elements 2p and 2p + 1 of D):
//
//       lane                       0          1         …   15
//                               +----------+----------+---+----------+
//       w[0]: rows 0 to 15      | row 0    | row 1    | … | row 15   |   pair p of each row
//       w[1]: rows 16 to 31     | row 16   | row 17   | … | row 31   |
//                               +----------+----------+---+----------+
//       x: activation c         | pair p of activation c, in every lane |
//                               +----------+----------+---+----------+
//       acc[c][0]               | row 0    | row 1    | … | row 15   |   fp32 sums
//       acc[c][1]               | row 16   | row 17   | … | row 31   |
//                               +----------+----------+---+----------+
#include <cstdint>

#include "head/args.h"
#include "kernels.h"
#include "simd_avx512bf16.h"

namespace microspec {
namespace avx512bf16 {

constexpr int64_t kChunk = Avx512Vec::kLanes;

#include "panel.inl"
#include "select.inl"
#include "draw.inl"

// ---- Constants
constexpr int kLanes = 16;
constexpr int kLine = 32;  // consecutive elements of an activation
constexpr int kPairs = kLine / 2;
constexpr int kDepth = 64;      // elements of the rows between a copy and its multiplication
constexpr int kRowVectors = 2;  // 2 * 12 accumulators, two of rows and an activation: 27 registers
constexpr int kColumns = 12;
constexpr int64_t kMaxColumns = 64;
// Elements by which a prefetch is ahead of the copy. On a Sapphire Rapids, 64 to 256 measure the same; 512
// takes 8 % longer at M = 1.
constexpr int64_t kAhead = 128;

static_assert(kHiddenPadding % kDepth == 0);

// ---- Step 1: order the activations, once a call
//
// Copies to [line of 32 elements][activation][32], so that elements multiplied together are adjacent.
void arrange(const void* hidden, int64_t count, int64_t stride, void* arranged) {
  const auto source = static_cast<const bf16_t*>(hidden);
  const auto target = static_cast<bf16_t*>(arranged);
  for (int64_t line = 0; line < stride / kLine; ++line) {
    for (int64_t row = 0; row < count; ++row) {
      __builtin_memcpy(target + (line * count + row) * kLine, source + row * stride + line * kLine,
                       kLine * sizeof(bf16_t));
    }
  }
}

// ---- Step 2: copy a block of rows, transposed
//
// Transposes sixteen vectors of sixteen pairs: pair i of vector r becomes pair r of vector i.
inline void transpose(__m512i (&v)[kLanes]) {
  __m512i t[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Now v[4 a + b], quarter c, holds pairs 4 c + b of rows 4 a to 4 a + 3.
#pragma GCC unroll 4
  for (int b = 0; b < 4; ++b) {
    const __m512i low = _mm512_shuffle_i32x4(v[b], v[4 + b], 0x88);
    const __m512i high = _mm512_shuffle_i32x4(v[b], v[4 + b], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(v[8 + b], v[12 + b], 0x88);
    const __m512i high2 = _mm512_shuffle_i32x4(v[8 + b], v[12 + b], 0xdd);
    t[b] = _mm512_shuffle_i32x4(low, low2, 0x88);
    t[4 + b] = _mm512_shuffle_i32x4(high, high2, 0x88);
    t[8 + b] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    t[12 + b] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) v[i] = t[i];
}

// The rows of a block, and of the next block (or the same block, at the end of the panel).
template <class Row>
struct RowBlock {
  const Row* rows[kRowVectors * kLanes];
  const Row* next[kRowVectors * kLanes];
};

// Loads up to 32 elements as bf16, with zeros for those beyond `left`.
template <class Row>
inline __m512i load_line(const Row* row, int64_t left) {
  if (left >= kLine) return widen(row);
  Row padded[kLine] = {};
  for (int64_t i = 0; i < left; ++i) padded[i] = row[i];
  return widen(padded);
}

// Copies elements [from, from + kDepth) of R * 16 rows to copy[pair][R][row][2], with zeros after the last
// element.
template <class Row, int R>
void copy_rows(const RowBlock<Row>& block, int64_t from, int64_t dim, bf16_t* copy) {
  const int64_t ahead = from + kAhead;
  const Row* const* const source = ahead < dim ? block.rows : block.next;
  const int64_t offset = ahead < dim ? ahead : ahead - dim;
  for (int part = 0; part < kDepth / kLine; ++part) {
    const int64_t d = from + part * kLine;
    for (int r = 0; r < R; ++r) {
      if (part * kLine * sizeof(Row) % 64 == 0) {
        for (int i = 0; i < kLanes; ++i) {
          __builtin_prefetch(source[r * kLanes + i] + offset + part * kLine);
        }
      }
      __m512i v[kLanes];
      if (d + kLine <= dim) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) v[i] = widen(block.rows[r * kLanes + i] + d);
      } else {
        for (int i = 0; i < kLanes; ++i) v[i] = load_line(block.rows[r * kLanes + i] + d, dim - d);
      }
      transpose(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        _mm512_store_si512(copy + ((part * kPairs + i) * R + r) * kLanes * 2, v[i]);
      }
    }
  }
}

// ---- Step 3: multiply
//
// Adds a copy's products with C activations to sums[C][R][16].
template <int R, int C>
void multiply(const bf16_t* copy, const bf16_t* hidden, int64_t line_stride, float* sums) {
  __m512 acc[C][R];
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) acc[c][r] = _mm512_load_ps(sums + (c * R + r) * kLanes);
  }
  for (int part = 0; part < kDepth / kLine; ++part) {
#pragma GCC unroll 2
    for (int pair = 0; pair < kPairs; ++pair) {
      __m512bh w[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        w[r] = reinterpret_cast<__m512bh>(_mm512_load_si512(copy + (pair * R + r) * kLanes * 2));
      }
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        int32_t elements;
        __builtin_memcpy(&elements, hidden + c * kLine + pair * 2, sizeof elements);
        const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(elements));
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) acc[c][r] = _mm512_dpbf16_ps(acc[c][r], w[r], x);
      }
    }
    copy += kPairs * R * kLanes * 2;
    hidden += line_stride;
  }
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) _mm512_store_ps(sums + (c * R + r) * kLanes, acc[c][r]);
  }
}

// Does the same for `count` activations, 1 <= count <= C.
template <int R, int C>
inline void multiply_columns(const bf16_t* copy, const bf16_t* hidden, int64_t line_stride, float* sums,
                             int64_t count) {
  if constexpr (C > 1) {
    if (count < C) return multiply_columns<R, C - 1>(copy, hidden, line_stride, sums, count);
  }
  multiply<R, C>(copy, hidden, line_stride, sums);
}

// ---- The panel kernel: steps 2 and 3 for each 32 rows and up to 64 activations
//
// Multiplies R * 16 rows from `first_row` on by `count` activations. Rows past the panel's end repeat its
// last row.
template <class Row, int R>
void panel_block(const Panel& panel, int64_t first_row, int64_t first_hidden, int64_t count) {
  constexpr int kRows = R * kLanes;
  RowBlock<Row> block;
  const int64_t last = panel.row_count - 1;
  for (int64_t r = 0; r < kRows; ++r) {
    const int64_t row = first_row + r < last ? first_row + r : last;
    const int64_t next = row + kRows <= last ? row + kRows : row;
    block.rows[r] = reinterpret_cast<const Row*>(panel.rows[row]);
    block.next[r] = reinterpret_cast<const Row*>(panel.rows[next]);
  }
  alignas(64) bf16_t copy[kRows * kDepth];
  alignas(64) float sums[kMaxColumns * kRows];
  __builtin_memset(sums, 0, count * kRows * sizeof(float));
  // Use blocks of even size: 14 activations are 7 + 7, not 12 + 2.
  const int64_t columns = (count + kColumns - 1) / kColumns;
  const int64_t width = (count + columns - 1) / columns;
  const int64_t line_stride = panel.hidden_count * kLine;
  const bf16_t* hidden = static_cast<const bf16_t*>(panel.hidden) + first_hidden * kLine;
  for (int64_t d = 0; d < panel.dim; d += kDepth) {
    copy_rows<Row, R>(block, d, panel.dim, copy);
    for (int64_t first = 0; first < count; first += width) {
      const int64_t left = count - first;
      multiply_columns<R, kColumns>(copy, hidden + first * kLine, line_stride, sums + first * kRows,
                                    left < width ? left : width);
    }
    hidden += kDepth / kLine * line_stride;
  }
  const int64_t rows = panel.row_count - first_row < kRows ? panel.row_count - first_row : kRows;
  float* dots = panel.dots + first_row * panel.hidden_count + first_hidden;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < count; ++c) {
      dots[r * panel.hidden_count + c] = sums[c * kRows + r] * Avx512Vec::gain(Row{});
    }
  }
}

template <class Row>
void panel_kernel_bf16(const Panel& panel) {
  for (int64_t row = 0; row < panel.row_count; row += kRowVectors * kLanes) {
    for (int64_t first = 0; first < panel.hidden_count; first += kMaxColumns) {
      const int64_t left = panel.hidden_count - first;
      const int64_t count = left < kMaxColumns ? left : kMaxColumns;
      if (panel.row_count - row > kLanes) {
        panel_block<Row, kRowVectors>(panel, row, first, count);
      } else {
        panel_block<Row, 1>(panel, row, first, count);
      }
    }
  }
}

template <class Row>
HeadKernel bf16_head() {
  return {panel_kernel_bf16<Row>, DType::bf16, arrange, nullptr};
}

HeadKernel head(DType weight_type, DType hidden_type) {
  if (hidden_type == DType::bf16) {
    switch (weight_type) {
      case DType::bf16: return bf16_head<bf16_t>();
      case DType::i8: return bf16_head<int8_t>();
      case DType::f8e4m3: return bf16_head<f8e4m3_t>();
      default: break;
    }
  }
  return widening_head<Avx512Vec>(weight_type, hidden_type);
}

}  // namespace avx512bf16

const InstructionSet kAvx512Bf16 = {"avx512bf16", avx512bf16::head, avx512bf16::select, avx512bf16::draw};

}  // namespace microspec
