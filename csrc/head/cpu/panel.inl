// SPDX-License-Identifier: Apache-2.0
// The panel kernel, compiled once for each instruction set. Each set includes this file inside its namespace,
// after its vector type. No standard library function may be instantiated here: the linker could give a copy
// with AVX-512 instructions to a processor without them.
//
// Floor: every byte of a row is read once from memory, whatever M. A panel of R rows stays in L1/L2 while its
// activations pass by C at a time, and R * C accumulators stay in registers: R + C loads for R * C
// multiply-adds. Each (row, activation) pair has one accumulator that adds the elements in order. So a logit
// does not depend on its slot, on M, or on the number of threads. (One exception: with AMX it differs between
// M = 1 and M > 1; see isa_amx.cpp.)
//
// Mac supplies: Row, Hidden (element types), kStep (elements per multiply-add), RowVec, HiddenVec, Acc,
// load(), load_partial(), load_hidden(), mac(), sum(), and kGain, a factor that its sums still need.

// Multiplies R rows from `first_row` on by C activations from `first_hidden` on.
template <class Mac, int R, int C>
inline void panel_tile(const Panel& panel, int64_t first_row, int64_t first_hidden) {
  using Row = typename Mac::Row;
  using Hidden = typename Mac::Hidden;
  constexpr int kLine = 64 / sizeof(Row);  // elements in a cache line
  const Row* row[R];
  for (int r = 0; r < R; ++r) {
    row[r] = reinterpret_cast<const Row*>(panel.rows[first_row + r]);
  }
  // With one activation, reading is the limit. The hardware prefetcher stops at the end of a row, so prefetch
  // eight lines ahead, across that end.
  constexpr int kAhead = 8 * kLine;
  const Row* next[R];
  for (int r = 0; r < R; ++r) {
    const int64_t after = first_row + R + r;
    next[r] = reinterpret_cast<const Row*>(panel.rows[after < panel.row_count ? after : first_row + r]);
  }
  const Hidden* hidden[C];
  for (int c = 0; c < C; ++c) {
    hidden[c] = static_cast<const Hidden*>(panel.hidden) + (first_hidden + c) * panel.hidden_stride;
  }
  typename Mac::Acc acc[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[r][c] = Mac::zero();
  }

  const auto accumulate = [&](const typename Mac::RowVec(&w)[R], int64_t d) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const auto x = Mac::load_hidden(hidden[c] + d);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][c] = Mac::mac(acc[r][c], w[r], x);
    }
  };

  int64_t d = 0;
  typename Mac::RowVec w[R];
  for (; d + kLine <= panel.dim; d += kLine) {
    if constexpr (C == 1) {
      const int64_t ahead = d + kAhead;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        __builtin_prefetch(ahead < panel.dim ? row[r] + ahead : next[r] + (ahead - panel.dim));
      }
    }
#pragma GCC unroll 4
    for (int step = 0; step < kLine; step += Mac::kStep) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) w[r] = Mac::load(row[r] + d + step);
      accumulate(w, d + step);
    }
  }
  for (; d < panel.dim; d += Mac::kStep) {
    const int64_t left = panel.dim - d;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      w[r] =
          left >= Mac::kStep ? Mac::load(row[r] + d) : Mac::load_partial(row[r] + d, static_cast<int>(left));
    }
    accumulate(w, d);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      panel.dots[(first_row + r) * panel.hidden_count + first_hidden + c] = Mac::sum(acc[r][c]) * Mac::kGain;
    }
  }
}

// Multiplies R rows by `count` activations, 1 <= count <= C.
template <class Mac, int R, int C>
inline void panel_columns(const Panel& panel, int64_t row, int64_t first, int64_t count) {
  if constexpr (C > 1) {
    if (count < C) return panel_columns<Mac, R, C - 1>(panel, row, first, count);
  }
  panel_tile<Mac, R, C>(panel, row, first);
}

// Takes Mac::kRowsFor1 rows at a time for one activation, and Mac::kRows rows by up to Mac::kColumns
// activations for more.
template <class Mac>
void panel_kernel(const Panel& panel) {
  const int64_t m = panel.hidden_count;
  if (m == 1) {
    int64_t row = 0;
    for (; row + Mac::kRowsFor1 <= panel.row_count; row += Mac::kRowsFor1) {
      panel_tile<Mac, Mac::kRowsFor1, 1>(panel, row, 0);
    }
    for (; row < panel.row_count; ++row) panel_tile<Mac, 1, 1>(panel, row, 0);
    return;
  }
  // Use blocks of even size: 10 activations are 5 + 5, not 6 + 4.
  const int64_t blocks = (m + Mac::kColumns - 1) / Mac::kColumns;
  const int64_t width = (m + blocks - 1) / blocks;
  int64_t row = 0;
  for (; row + Mac::kRows <= panel.row_count; row += Mac::kRows) {
    for (int64_t first = 0; first < m; first += width) {
      panel_columns<Mac, Mac::kRows, Mac::kColumns>(panel, row, first, m - first < width ? m - first : width);
    }
  }
  for (; row < panel.row_count; ++row) {
    for (int64_t first = 0; first < m; first += width) {
      panel_columns<Mac, 1, Mac::kColumns>(panel, row, first, m - first < width ? m - first : width);
    }
  }
}

// Returns the panel kernel of a Mac, whose activations need no arrangement.
template <class Mac>
HeadKernel head_kernel(DType hidden_type) {
  return {panel_kernel<Mac>, hidden_type, nullptr, nullptr};
}

// The multiply-add for rows that are widened to fp32 first. Vec is the set's vector of floats.
template <class Vec, class RowType>
struct WideningMac {
  using Row = RowType;
  using Hidden = float;
  using Acc = typename Vec::Type;
  using RowVec = typename Vec::Type;
  static constexpr int kStep = Vec::kLanes;
  static constexpr int kRowsFor1 = Vec::kRowsFor1, kRows = Vec::kRows, kColumns = Vec::kColumns;
  static constexpr float kGain = Vec::gain(Row{});
  static Acc zero() { return Vec::zero(); }
  static RowVec load(const Row* p) { return Vec::load(p); }
  static RowVec load_partial(const Row* p, int count) {
    Row padded[kStep] = {};
    for (int i = 0; i < count; ++i) padded[i] = p[i];
    return Vec::load(padded);
  }
  static RowVec load_hidden(const float* p) { return Vec::load(p); }
  static Acc mac(Acc acc, RowVec w, RowVec x) { return Vec::fma(w, x, acc); }
  static float sum(Acc acc) { return Vec::sum(acc); }
};

#include "panel_int4.inl"

// Returns the kernel that widens rows to fp32, for every type of weight.
template <class Vec>
HeadKernel widening_head(DType weight_type, DType) {
  switch (weight_type) {
    case DType::f32: return head_kernel<WideningMac<Vec, float>>(DType::f32);
    case DType::f16: return head_kernel<WideningMac<Vec, f16_t>>(DType::f32);
    case DType::bf16: return head_kernel<WideningMac<Vec, bf16_t>>(DType::f32);
    case DType::i8: return head_kernel<WideningMac<Vec, int8_t>>(DType::f32);
    case DType::i4: return int4_head<I4Rows<Vec>>();
    case DType::f4e2m1: return int4_head<E2m1Rows<Vec>>();
    case DType::f8e4m3: return head_kernel<WideningMac<Vec, f8e4m3_t>>(DType::f32);
  }
  __builtin_trap();  // the op's checks admit no other type
}
