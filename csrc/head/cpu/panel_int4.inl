// SPDX-License-Identifier: Apache-2.0
// The panel kernel for rows of 4 bits, i4 and f4e2m1, a part of panel.inl.
//
// Floor: 4.5 bits a column, half a bit of them scales, read once whatever M. A 32-bit lane of a row's codes
// holds eight neighbouring columns: one shift brings the next column of every lane to the same place, and no
// lane crosses a group of 32 columns, or of 16. The activations are permuted to match, once a call. So a
// column costs a lane of one shift, of one widening and, for each activation, of one multiply-add. A lane
// sums a block's products without the scale, which is the same for all of them, and one more multiply-add
// applies it:
//
//     sum[lane] += scale[group of the lane] * (q0 * x0 + q1 * x1 + … + q7 * x7)
//
// Codes and scales are exact in fp32, so only products and sums are rounded, as for other rows. bf16
// instructions are not faster: on a Sapphire Rapids one VDPBF16PS takes as long as four multiply-adds.
//
// Vec supplies: Codes (a lane's eight columns), load_codes(), column_of(codes, column in the lane) and
// group_scales(), each lane's scale; kInt4Rows and kInt4Columns, the size of a tile. For f4e2m1 rows the
// first three are E2m1Codes, load_e2m1() and e2m1_column_of(), and E2m1Scales is an integer that holds the
// scales of its lanes. I4Rows and E2m1Rows make a row's format of them.

template <class Vec>
struct I4Rows : Vec {
  using Scale = bf16_t;
  static constexpr int64_t kGroup = kScaleGroup;
  static constexpr float kGain = 1.0f;  // a factor that the sums still need
};

template <class Vec>
struct E2m1Rows : Vec {
  using Scale = f8e4m3_t;
  static constexpr int64_t kGroup = kE2m1Group;
  static constexpr float kGain = Vec::kE2m1Gain * Vec::gain(Scale{});
  using Codes = typename Vec::E2m1Codes;
  static Codes load_codes(const char* p) { return Vec::load_e2m1(p); }
  static typename Vec::Type column_of(const Codes& codes, int i) { return Vec::e2m1_column_of(codes, i); }
  // A group of 16 columns is in two lanes.
  static typename Vec::Type group_scales(const Scale* p) {
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    typedef uint64_t Words __attribute__((vector_size(16)));
    // Through a whole word: a vector of which memory got only a part would be slow to load.
    typename Vec::E2m1Scales scales;
    static_assert(sizeof scales == Vec::kLanes / 2);
    __builtin_memcpy(&scales, p, sizeof scales);
    const Bytes bytes = reinterpret_cast<Bytes>(Words{scales, 0});
    const Bytes twice = __builtin_shuffle(bytes, Bytes{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7});
    return Vec::load(reinterpret_cast<const Scale*>(&twice));
  }
};

// Rows that a tile takes for one activation.
constexpr int kInt4RowsFor1 = 8;
static_assert(2 * kInt4RowsFor1 == kPanelUnit);
constexpr int64_t kInt4Ahead = 512;  // bytes by which a prefetch is ahead in a row, and on into the next

// The rows of a tile: first, first + step, …; and those of the tile that follows.
struct Int4Rows {
  int64_t first, step, next;
};

template <class Vec>
constexpr int kInt4Block = 8 * Vec::kLanes;  // columns

// The codes of a row's block, and each lane's scale.
template <class Vec>
struct Int4Block {
  typename Vec::Codes codes;
  typename Vec::Type scales;

  using Scale = typename Vec::Scale;

  static Int4Block load(const char* row, const Scale* scales, int64_t d) {
    return {Vec::load_codes(row + d / 2), Vec::group_scales(scales + d / Vec::kGroup)};
  }
  // Fills the last, shorter block with zeros, since nothing beyond a row may be read.
  static Int4Block load_rest(const char* row, const Scale* scales, int64_t d, int64_t left) {
    char padded[kInt4Block<Vec> / 2] = {};
    Scale padded_scales[kInt4Block<Vec> / Vec::kGroup] = {};
    for (int64_t i = 0; i < left / 2; ++i) padded[i] = row[d / 2 + i];
    for (int64_t i = 0; i < left / Vec::kGroup; ++i) padded_scales[i] = scales[d / Vec::kGroup + i];
    return load(padded, padded_scales, 0);
  }
};

// Multiplies R rows by C activations.
template <class Vec, int R, int C>
inline void int4_tile(const Panel& panel, const Int4Rows& rows, int64_t first_hidden) {
  using Type = typename Vec::Type;
  constexpr int kBlock = kInt4Block<Vec>;
  constexpr int kShared = C == 1 ? 1 : R;  // rows that share a loaded activation
  const int64_t bytes = panel.dim / 2;
  const char* row[R];
  const char* next[R];
  const typename Vec::Scale* scales[R];
  const char* next_scales[R];
  for (int r = 0; r < R; ++r) {
    const int64_t at = rows.first + r * rows.step, after = rows.next + r * rows.step;
    row[r] = panel.rows[at];
    scales[r] = static_cast<const typename Vec::Scale*>(panel.scales[at]);
    next[r] = panel.rows[after < panel.row_count ? after : at];
    next_scales[r] = static_cast<const char*>(panel.scales[after < panel.row_count ? after : at]);
  }
  const float* hidden[C];
  for (int c = 0; c < C; ++c) {
    hidden[c] = static_cast<const float*>(panel.hidden) + (first_hidden + c) * panel.hidden_stride;
  }
  Type acc[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) acc[r][c] = Vec::zero();
  }

  const auto accumulate = [&](const Int4Block<Vec>(&block)[R], int64_t d) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int first = 0; first < R; first += kShared) {
      Type w[kShared][8];
#pragma GCC unroll 16
      for (int r = 0; r < kShared; ++r) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) w[r][i] = Vec::column_of(block[first + r].codes, i);
      }
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        Type products[kShared];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const Type x = Vec::load(hidden[c] + d + i * Vec::kLanes);
#pragma GCC unroll 16
          for (int r = 0; r < kShared; ++r) {
            products[r] = i == 0 ? w[r][i] * x : Vec::fma(w[r][i], x, products[r]);
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < kShared; ++r) {
          acc[first + r][c] = Vec::fma(products[r], block[first + r].scales, acc[first + r][c]);
        }
      }
    }
  };

  int64_t d = 0;
  Int4Block<Vec> block[R];
  for (; d + kBlock <= panel.dim; d += kBlock) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      if (d / 2 % 64 == 0) {  // a new line of codes
        const int64_t line = d / 128, ahead = d / 2 + kInt4Ahead;
        __builtin_prefetch(ahead < bytes ? row[r] + ahead : next[r] + (ahead - bytes));
        // A line of scales serves eight of codes. The rows' turns come one by one: a burst of prefetches
        // would hold up the codes.
        if (line % 8 == r % 8) __builtin_prefetch(next_scales[r] + line / 8 * 64);
      }
      block[r] = Int4Block<Vec>::load(row[r], scales[r], d);
    }
    accumulate(block, d);
  }
  if (d < panel.dim) {
    for (int r = 0; r < R; ++r) block[r] = Int4Block<Vec>::load_rest(row[r], scales[r], d, panel.dim - d);
    accumulate(block, d);
  }
  for (int r = 0; r < R; ++r) {
    float* dots = panel.dots + (rows.first + r * rows.step) * panel.hidden_count + first_hidden;
    for (int c = 0; c < C; ++c) dots[c] = Vec::sum(acc[r][c]) * Vec::kGain;
  }
}

// Multiplies R rows by `count` activations, 1 <= count <= C.
template <class Vec, int R, int C>
inline void int4_columns(const Panel& panel, const Int4Rows& rows, int64_t first, int64_t count) {
  if constexpr (C > 1) {
    if (count < C) return int4_columns<Vec, R, C - 1>(panel, rows, first, count);
  }
  int4_tile<Vec, R, C>(panel, rows, first);
}

// Multiplies R rows by all activations, in blocks of even size.
template <class Vec, int R>
inline void int4_rows(const Panel& panel, int64_t row) {
  constexpr int C = Vec::kInt4Columns;
  const int64_t m = panel.hidden_count, blocks = (m + C - 1) / C;
  const int64_t width = (m + blocks - 1) / blocks;
  for (int64_t first = 0; first < m; first += width) {
    int4_columns<Vec, R, C>(panel, {row, 1, row + R}, first, m - first < width ? m - first : width);
  }
}

template <class Vec>
void int4_panel_kernel(const Panel& panel) {
  int64_t row = 0;
  if (panel.hidden_count == 1) {
    // Two rows of 4096 columns lie in one page of 4 KB, and the hardware prefetcher follows one stream a
    // page. So a tile takes every second row, and the next tile takes the rows between.
    for (; row + kPanelUnit <= panel.row_count; row += kPanelUnit) {
      int4_tile<Vec, kInt4RowsFor1, 1>(panel, {row, 2, row + 1}, 0);
      int4_tile<Vec, kInt4RowsFor1, 1>(panel, {row + 1, 2, row + kPanelUnit}, 0);
    }
  }
  for (; row + Vec::kInt4Rows <= panel.row_count; row += Vec::kInt4Rows) {
    int4_rows<Vec, Vec::kInt4Rows>(panel, row);
  }
  for (; row < panel.row_count; ++row) int4_rows<Vec, 1>(panel, row);
}

// Permutes each activation's columns, block by block, to the order of the unpacked codes.
template <class Vec>
void int4_arrange(const void* hidden, int64_t count, int64_t stride, void* arranged) {
  static_assert(kHiddenPadding % kInt4Block<Vec> == 0);
  const float* source = static_cast<const float*>(hidden);
  float* target = static_cast<float*>(arranged);
  for (int64_t d = 0; d < count * stride; d += kInt4Block<Vec>) {
    for (int i = 0; i < 8; ++i) {
      for (int lane = 0; lane < Vec::kLanes; ++lane) *target++ = source[d + 8 * lane + i];
    }
  }
}

template <class Vec>
HeadKernel int4_head() {
  return {int4_panel_kernel<Vec>, DType::f32, int4_arrange<Vec>, nullptr};
}
