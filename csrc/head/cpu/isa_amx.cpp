// SPDX-License-Identifier: Apache-2.0
// AMX with bf16: Sapphire Rapids and later. One instruction multiplies 16 rows by 16 activations over 32
// elements, so up to 64 activations cost little more than reading the rows.
//
// A tile is loaded with one stride, but active rows are scattered. So 16 rows are copied, a block at a time,
// into a ring that stays in L1. The copy also widens int8 and fp8 rows to bf16, which represents both
// exactly. This file serves bf16 activations only; other types take the AVX-512 path.
//
// Tile layout. A tile is 16 rows of 64 bytes. TDPBF16PS adds the products of tile 4 and one of tiles 5 to 7,
// two elements of D at a time, to one of tiles 0 to 3:
//
//       tile 4: rows of the weight      tiles 5-7: activations        tiles 0-3: dot products, fp32
//
//       element  0,1  2,3  …  30,31     activation  0   1   …   15     activation  0   1   …   15
//               +-----------------+                +---------------+              +---------------+
//       row 0   |                 |     pair 0     |               |    row 0     |               |
//       row 1   |  bf16, 2 a word |     pair 1     | bf16, 2 a word|    row 1     | fp32          |
//       …       |                 |     …          |               |    …         |               |
//       row 15  |                 |     pair 15    |               |    row 15    |               |
//               +-----------------+                +---------------+              +---------------+
//
// Pair p is elements 2p and 2p + 1 of the block. 64 activations are four accumulators; tile 5 then holds the
// first 16 activations and later the last 16.
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <type_traits>

#include "head/args.h"
#include "kernels.h"
#include "simd_avx512bf16.h"

namespace microspec {
namespace amx {

constexpr int64_t kChunk = Avx512Vec::kLanes;

#include "panel.inl"
#include "select.inl"
#include "draw.inl"

// ---- Constants and tile layout
constexpr int kTileRows = 16;    // rows of the weight in a tile
constexpr int kTileDepth = 32;   // elements of a row in a tile
constexpr int kColumns = 16;     // activations in a tile
constexpr int kColumnTiles = 4;  // accumulators are tiles 0-3; tile 4 holds rows, tiles 5-7 hold activations
// Blocks of 16 rows by 32 elements between a copy and its multiplication. A tile load cannot take its data
// from stores still in flight. Four blocks later the stores have reached L1, and meanwhile the loads of the
// next blocks keep the memory busy.
constexpr int kLag = 4;
constexpr int kBlock = kTileRows * kTileDepth;
constexpr int kAhead = 8 * kTileDepth;  // elements by which a prefetch is ahead of the copy

// The layout that LDTILECFG requires. Every tile is 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// ---- Step 1: order the activations, once a call, as tiles load them
//
// Whether VDPBF16PS serves the panel instead of AMX. One activation against bf16 rows is limited by reading,
// and VDPBF16PS, which needs no copy of the rows, reads them a tenth faster. So a logit's last bits may
// differ between M = 1 and M > 1, and only there.
template <class Row>
constexpr bool dots_suffice(int64_t count) {
  return count == 1 && std::is_same_v<Row, bf16_t>;
}

template <class Row>
int64_t arranged_rows(int64_t count) {
  return dots_suffice<Row>(count) ? 1 : (count + kColumns - 1) / kColumns * kColumns;
}

// Writes [column tile][pair of elements][activation][2], with zeros for missing activations.
template <class Row>
void arrange(const void* hidden, int64_t count, int64_t stride, void* arranged) {
  const int64_t bytes = arranged_rows<Row>(count) * stride * sizeof(bf16_t);
  if (dots_suffice<Row>(count)) {
    __builtin_memcpy(arranged, hidden, bytes);
    return;
  }
  const auto source = static_cast<const uint32_t*>(hidden);  // pairs of elements
  const auto target = static_cast<uint32_t*>(arranged);
  const int64_t pairs = stride / 2;
  __builtin_memset(arranged, 0, bytes);
  for (int64_t row = 0; row < count; ++row) {
    uint32_t* column = target + row / kColumns * kColumns * pairs + row % kColumns;
    for (int64_t pair = 0; pair < pairs; ++pair) column[pair * kColumns] = source[row * pairs + pair];
  }
}

// ---- Step 2: copy a block of rows to the ring
//
// Up to sixteen rows of a panel, and the rows that follow them.
struct RowTile {
  const char* const* rows;
  const char* const* next;  // `rows` itself at the end of the panel
  int64_t count;
};

// Copies elements [from, from + 32) of each row, one row after the other. The hardware prefetcher follows
// these sixteen streams but stops at the end of a row, so this function prefetches the first lines of the
// next rows. Missing rows and elements are zero.
template <class Row>
inline void copy_block(const RowTile& tile, int64_t from, int64_t dim, bf16_t* block) {
  const int64_t left = dim - from;
  const int64_t ahead = from + kAhead;
  const char* const* source = ahead < dim ? tile.rows : tile.next;
  const int64_t offset = (ahead < dim ? ahead : ahead - dim) * sizeof(Row);
  int64_t r = 0;
  for (; r < tile.count; ++r) {
    __builtin_prefetch(source[r] + offset);
    const Row* row = reinterpret_cast<const Row*>(tile.rows[r]) + from;
    if (left >= kTileDepth) {
      _mm512_store_si512(block + r * kTileDepth, widen(row));
      continue;
    }
    Row padded[kTileDepth] = {};
    for (int64_t i = 0; i < left; ++i) padded[i] = row[i];
    _mm512_store_si512(block + r * kTileDepth, widen(padded));
  }
  for (; r < kTileRows; ++r) _mm512_store_si512(block + r * kTileDepth, _mm512_setzero_si512());
}

// ---- Step 3: multiply
//
// Adds one block of rows times `Tiles` tiles of activations to accumulators 0 to Tiles - 1.
template <int Tiles>
inline void multiply(const bf16_t* block, const char* hidden, int64_t column_bytes) {
  _tile_loadd(4, block, 64);
  _tile_loadd(5, hidden, 64);
  _tile_dpbf16ps(0, 4, 5);
  if constexpr (Tiles > 1) {
    _tile_loadd(6, hidden + column_bytes, 64);
    _tile_dpbf16ps(1, 4, 6);
  }
  if constexpr (Tiles > 2) {
    _tile_loadd(7, hidden + 2 * column_bytes, 64);
    _tile_dpbf16ps(2, 4, 7);
  }
  if constexpr (Tiles > 3) {
    _tile_loadd(5, hidden + 3 * column_bytes, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
}

// Multiplies whole rows by `Tiles` tiles of activations.
template <class Row, int Tiles>
void multiply_rows(const RowTile& tile, int64_t dim, const char* hidden, int64_t column_bytes) {
  alignas(64) bf16_t ring[2 * kLag * kBlock];
  const int64_t blocks = (dim + kTileDepth - 1) / kTileDepth;
  for (int64_t i = 0; i < blocks + kLag; ++i) {
    if (i < blocks) copy_block<Row>(tile, i * kTileDepth, dim, ring + i % (2 * kLag) * kBlock);
    if (i < kLag) continue;
    const int64_t ready = i - kLag;
    multiply<Tiles>(ring + ready % (2 * kLag) * kBlock,
                    hidden + ready * kTileDepth * kColumns * sizeof(bf16_t), column_bytes);
  }
}

// ---- Step 4: write the dot products
//
// Writes an accumulator of `rows` rows by `columns` activations to dots[row * stride + column].
inline void store_tile(int accumulator, int64_t rows, int64_t columns, float gain, float* dots,
                       int64_t stride) {
  alignas(64) float sums[kTileRows * kColumns];
  switch (accumulator) {  // the tile number must be a constant
    case 0: _tile_stored(0, sums, 64); break;
    case 1: _tile_stored(1, sums, 64); break;
    case 2: _tile_stored(2, sums, 64); break;
    default: _tile_stored(3, sums, 64); break;
  }
  const __mmask16 mask = columns >= kColumns ? 0xffff : static_cast<__mmask16>((1u << columns) - 1);
  for (int64_t r = 0; r < rows; ++r) {
    const __m512 row = _mm512_load_ps(sums + r * kColumns) * _mm512_set1_ps(gain);
    _mm512_mask_storeu_ps(dots + r * stride, mask, row);
  }
}

// ---- The panel kernel: steps 2 to 4 for each 16 rows and up to 64 activations
template <class Row>
void panel_kernel_amx(const Panel& panel) {
  if (dots_suffice<Row>(panel.hidden_count)) return panel_kernel<Bf16Mac>(panel);
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t column_bytes = panel.hidden_stride * kColumns * sizeof(bf16_t);
  for (int64_t row = 0; row < panel.row_count; row += kTileRows) {
    const int64_t left = panel.row_count - row;
    const RowTile tile{panel.rows + row, panel.rows + (left >= 2 * kTileRows ? row + kTileRows : row),
                       left < kTileRows ? left : kTileRows};
    for (int64_t first = 0; first < panel.hidden_count; first += kColumnTiles * kColumns) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const int64_t columns = panel.hidden_count - first;
      const char* hidden = static_cast<const char*>(panel.hidden) + first / kColumns * column_bytes;
      const int64_t tiles = (columns + kColumns - 1) / kColumns;
      switch (tiles) {
        case 1: multiply_rows<Row, 1>(tile, panel.dim, hidden, column_bytes); break;
        case 2: multiply_rows<Row, 2>(tile, panel.dim, hidden, column_bytes); break;
        case 3: multiply_rows<Row, 3>(tile, panel.dim, hidden, column_bytes); break;
        default: multiply_rows<Row, 4>(tile, panel.dim, hidden, column_bytes); break;
      }
      for (int i = 0; i < kColumnTiles && i < tiles; ++i) {
        float* dots = panel.dots + row * panel.hidden_count + first + i * kColumns;
        store_tile(i, tile.count, columns - i * kColumns, Avx512Vec::gain(Row{}), dots, panel.hidden_count);
      }
    }
  }
  _tile_release();
}

template <class Row>
HeadKernel amx_head() {
  return {panel_kernel_amx<Row>, DType::bf16, arrange<Row>, arranged_rows<Row>};
}

HeadKernel head(DType weight_type, DType hidden_type) {
  if (hidden_type == DType::bf16) {
    switch (weight_type) {
      case DType::bf16: return amx_head<bf16_t>();
      case DType::i8: return amx_head<int8_t>();
      case DType::f8e4m3: return amx_head<f8e4m3_t>();
      default: break;
    }
  }
  return widening_head<Avx512Vec>(weight_type, hidden_type);
}

}  // namespace amx

bool amx_usable() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("avx512bf16") && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

const InstructionSet kAmx = {"amx", amx::head, amx::select, amx::draw};

}  // namespace microspec
