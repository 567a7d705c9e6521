// SPDX-License-Identifier: Apache-2.0
// project_mma multiplies many rows of hidden by the active rows on tensor cores. The weights are mma's
// operand a, which has sixteen rows.
//
// Floor: the active rows' bytes over the memory's bandwidth, as for few rows. The difference to few rows is
// the size of hidden: 60 rows of 4096 are 480 KB. Every block needs all of them, and no shared memory holds
// them. Hence:
// - D is split over the block's eight warps, and over `splits` blocks if that is not enough. A warp keeps
//   its elements of hidden in 128 registers a lane (kTiles x kChunksPerWarp x kWords) from first to last.
//   Shared memory holds the warps' sums and the ring of weights: up to 200 KB an SM.
// - The second kernel adds the splits' partial sums in the order of the splits. That needs no barrier between
//   blocks.
// - Within a block, the warps' sums meet in shared memory, 16 slots at a time.
//
//     D of one row:   | split 0: blocks 0, splits, 2 splits, …   | split 1: blocks 1, splits + 1, …
//                     | warp 0   | warp 1   | …       | warp 7   | warp 0   | …
//                     | chunk | chunk | …
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
//
// Execution order: (1) ring.cuh copies runs of weights to shared memory, (2) load_hidden fills the registers,
// (3) multiply, (4) store writes a warp's sums to shared memory, (5) store_tile adds the warps' sums and
// writes the partial dot products. project_mma_kernel runs these steps; plan_for sizes them on the host.
//
// Not yet measured on a GPU.
#include "cuda/banks.cuh"
#include "cuda/elements.cuh"
#include "project.h"
#include "ring.cuh"
#include "rows.cuh"
#include "segments.cuh"

namespace microspec {

namespace {

// ---- Constants and shapes
constexpr int kThreads = kRingWarps * kWarp;
constexpr int kHiddenRegisters = 128;
// The smallest number of splits of D, even if the registers could hold hidden with fewer.
#ifndef MICROSPEC_MIN_SPLITS
#define MICROSPEC_MIN_SPLITS 1
#endif
// kTile is the number of hidden rows in a tile (mma's n). kSlots is the number of slots (mma's m) in the sums
// in shared memory. Their pitch has 4 floats of padding, which lets 32 lanes store to 32 banks (sum_index).
constexpr int kTile = 8;
constexpr int kSlots = 2 * kRun;
constexpr int kSlotsPitch = kSlots + 4;

// The elements of a chunk: what the four lanes of a quad read at once from a row. They make two (16-bit) or
// four (8-bit) multiplications of sixteen.
template <class Row>
constexpr int kChunk = 4 * kVector<Row>;

// The sizes of a warp's fragments and of the warps' sums.
template <class Row, int kTiles>
struct WarpShape {
  static constexpr int kWidth = kTile * kTiles;  // rows of hidden
  // A lane's words of hidden in each chunk of a row, two elements a word.
  static constexpr int kWords = kVector<Row> / 2;
  // Chunks of D that a warp's registers hold.
  static constexpr int kChunksPerWarp = kHiddenRegisters / (kTiles * kWords);
  static constexpr int kSums = kRingWarps * kWidth * kSlotsPitch;  // floats in shared memory
};

MICROSPEC_DEVICE int split_dim(const MmaPlan& plan) { return plan.warp_dim * kRingWarps; }

// The place of a lane's first d register in the sums of a tile of hidden rows.
constexpr int sum_index(int lane) { return lane % 4 * 2 * kSlotsPitch + lane / 4; }
static_assert(wavefronts<1>(sum_index) == 1);

// What a thread of store_tile adds: four slots of row m.
struct SumQuad {
  int m, quad;

  // Eight lanes read 16 bytes each at a time: two rows that lie four apart, so that they hit every bank once.
  constexpr explicit SumQuad(int index)
      : m(index / 32 * 8 + index % 32 / 8 + index / 4 % 2 * 4), quad(index % 4) {}
  constexpr int place() const { return m * kSlotsPitch + quad * 4; }
};
static_assert(wavefronts<4>([](int lane) { return SumQuad(lane).place(); }) == 4);

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
template <class Hidden, class Row, int kTiles>
class WarpTile {
  using S = WarpShape<Row, kTiles>;

 public:
  // Takes elements [begin, begin + warp_dim) of D, and drops those at or above `end`.
  MICROSPEC_DEVICE WarpTile(int64_t begin, int warp_dim, int64_t end)
      : begin_(begin), offset_(warp_index() * warp_dim * static_cast<int>(sizeof(Row))) {
    const int64_t dim = min(static_cast<int64_t>(warp_dim), end - begin);
    chunks_ = dim > 0 ? static_cast<int>(dim) / kChunk<Row> : 0;
  }

  // Step 2: loads the b fragments into registers. Rows beyond the segment and elements beyond D are zero.
  MICROSPEC_DEVICE void load_hidden(const HeadArgs& args, const Segment& segment) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int m = n * kTile + lane_index() / 4;
      const bool is_row = m < segment.count;
      const auto* row = static_cast<const Hidden*>(args.hidden) +
                        (is_row ? segment.row(m) * args.hidden_row_stride : 0) + begin_ +
                        lane_index() % 4 * kVector<Row>;
#pragma unroll
      for (int c = 0; c < S::kChunksPerWarp; ++c) {
#pragma unroll
        for (int w = 0; w < S::kWords; w += 4) {
          uint4 words = make_uint4(0, 0, 0, 0);
          if (is_row && c < chunks_) words = *reinterpret_cast<const uint4*>(row + c * kChunk<Row> + 2 * w);
          hidden_[n][c][w] = words.x;
          hidden_[n][c][w + 1] = words.y;
          hidden_[n][c][w + 2] = words.z;
          hidden_[n][c][w + 3] = words.w;
        }
      }
    }
  }

  // Step 3: adds the products to `dots`. `low` and `high` are runs in shared memory: slots 0 to 7 and 8 to 15
  // of the tile.
  MICROSPEC_DEVICE void multiply(const unsigned char* low, const unsigned char* high, int row_pitch,
                                 float (&dots)[kTiles][4]) const {
    const int at = lane_index() / 4 * row_pitch + offset_ + lane_index() % 4 * 16;
#pragma unroll
    for (int c = 0; c < S::kChunksPerWarp; ++c) {
      if (c >= chunks_) break;
      constexpr int kBytes = kChunk<Row> * static_cast<int>(sizeof(Row));
      uint32_t low_pairs[S::kWords], high_pairs[S::kWords];
      as_pairs<Hidden, Row>(*reinterpret_cast<const uint4*>(low + at + c * kBytes), low_pairs);
      as_pairs<Hidden, Row>(*reinterpret_cast<const uint4*>(high + at + c * kBytes), high_pairs);
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

  // Step 4: writes the d fragments to this warp's sums, [kWidth, kSlotsPitch].
  MICROSPEC_DEVICE static void store(const float (&dots)[kTiles][4], float* sums) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float* row = sums + n * kTile * kSlotsPitch + sum_index(lane_index());
      row[0] = dots[n][0];
      row[kSlotsPitch] = dots[n][1];
      row[kRun] = dots[n][2];
      row[kSlotsPitch + kRun] = dots[n][3];
    }
  }

 private:
  int64_t begin_;
  int offset_;  // bytes from the start of a row in shared memory to the warp's elements
  int chunks_;
  uint32_t hidden_[kTiles][S::kChunksPerWarp][S::kWords];
};

// ---- Step 5: add the warps' sums
//
// Adds the warps' sums of a tile's two runs and writes them. Each thread writes four slots of one row of
// hidden.
template <int kWidth>
MICROSPEC_DEVICE void store_tile(const float* sums, const Segment& segment, int low_run, int high_run,
                                 int64_t row_base, const Partials& partials) {
  constexpr int kQuads = kSlots / 4;
  const int tiles = ceil_div(segment.count, kTile);
  for (int o = threadIdx.x; o < tiles * kTile * kQuads; o += kThreads) {
    const SumQuad at(o);
    const int run = at.quad < kQuads / 2 ? low_run : high_run;
    if (run < 0 || at.m >= segment.count) continue;
    const float* warp_sums = sums + at.place();
    float4 total = *reinterpret_cast<const float4*>(warp_sums);
#pragma unroll
    for (int w = 1; w < kRingWarps; ++w) {
      const float4 more = *reinterpret_cast<const float4*>(warp_sums + w * kWidth * kSlotsPitch);
      total.x += more.x;
      total.y += more.y;
      total.z += more.z;
      total.w += more.w;
    }
    float* target =
        partials.data + (row_base + segment.row(at.m)) * partials.pitch + run * kRun + at.quad % 2 * 4;
    *reinterpret_cast<float4*>(target) = total;
  }
}

// ---- The kernel: steps 1 to 5 for each segment of rows that the block works on
template <class Hidden, class Row, int kTiles>
MICROSPEC_KERNEL(kThreads, 1)
project_mma_kernel(HeadArgs args, Partials partials, MmaPlan plan) {
  using S = WarpShape<Row, kTiles>;
  MICROSPEC_DYNAMIC_SHARED(shared);
  MICROSPEC_SHARED(SegmentTable, table, 1);
  MICROSPEC_SHARED(uint64_t, full, kMaxDepth);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const Segments segments = Segments::of<S::kWidth>(args, table);
  if (segments.count() == 0) return;

  float* sums = reinterpret_cast<float*>(shared);
  const int split_index = blockIdx.x % plan.splits, block_in_split = blockIdx.x / plan.splits;
  const int blocks_per_split = gridDim.x / plan.splits;
  const int64_t begin = static_cast<int64_t>(split_index) * split_dim(plan);
  const Split split{begin, static_cast<int>(min(static_cast<int64_t>(split_dim(plan)), args.dim - begin))};
  Ring<Row> ring(args, split, plan.depth, plan.row_pitch, full, shared + S::kSums * sizeof(float));
  WarpTile<Hidden, Row, kTiles> tile(begin + warp_index() * plan.warp_dim, plan.warp_dim, args.dim);

  const int run_count = static_cast<int>(ceil_div(args.capacity, int64_t{kRun}));
  const int segment_blocks = blocks_per_segment(segments.count(), blocks_per_split);
  for (int work = block_in_split; work < segments.count() * segment_blocks; work += blocks_per_split) {
    const Segment segment = segments[work / segment_blocks];
    const StridedRange runs{work % segment_blocks, segment_blocks, run_count};
    const int count = runs.count();
    const int ahead = min(count, plan.depth);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) ring.start(segment.group, runs.at(i));
    tile.load_hidden(args, segment);
    for (int i = 0; i < count; i += 2) {
      const bool two = i + 1 < count;
      const unsigned char* low = ring.take();
      const unsigned char* high = two ? ring.take() : low;
      float dots[kTiles][4] = {};
      tile.multiply(low, high, plan.row_pitch, dots);
      __syncthreads();  // all threads have read the previous tile's sums
      tile.store(dots, sums + warp_index() * S::kWidth * kSlotsPitch);
      __syncthreads();  // this tile's sums are complete, and its two places in the ring are free
#pragma unroll 1
      for (int next = i + plan.depth; next < min(i + plan.depth + 2, count); ++next) {
        ring.start(segment.group, runs.at(next));
      }
      store_tile<S::kWidth>(sums, segment, runs.at(i), two ? runs.at(i + 1) : -1, split_index * args.rows,
                            partials);
    }
  }
}

// ---- Host: the plan and the launch
// Returns the plan with the fewest splits that leave room for hidden in registers and for the ring in shared
// memory, of which the kernel may have `room` bytes.
template <class Row, int kTiles>
MmaPlan plan_for(const HeadArgs& args, int64_t room) {
  using S = WarpShape<Row, kTiles>;
  // The ring needs a tile's two runs and one run in flight. More splits make the runs smaller.
  constexpr int kMinDepth = 3;
  constexpr int kMaxWarpDim = S::kChunksPerWarp * kChunk<Row>;
  const size_t fixed = S::kSums * sizeof(float);
  const size_t available = static_cast<size_t>(room) - fixed;
  const auto with = [&](int64_t splits) {
    MmaPlan plan{};
    const int64_t unit = kRingWarps * kChunk<Row>;
    plan.warp_dim = static_cast<int>(ceil_div(args.dim, splits * unit) * kChunk<Row>);
    const int64_t split_dim = static_cast<int64_t>(plan.warp_dim) * kRingWarps;
    plan.splits = static_cast<int>(ceil_div(args.dim, split_dim));
    plan.row_pitch = static_cast<int>(split_dim * sizeof(Row)) + kRowPad;
    const size_t run_bytes = static_cast<size_t>(kRun) * plan.row_pitch;
    plan.depth = static_cast<int>(std::min<size_t>(kMaxDepth, available / run_bytes));
    plan.shared_bytes = fixed + plan.depth * run_bytes;
    return plan;
  };
  const int64_t needed = ceil_div<int64_t>(args.dim, kMaxWarpDim * kRingWarps);
  int64_t splits = std::max<int64_t>(MICROSPEC_MIN_SPLITS, needed);
  MmaPlan plan = with(splits);
  while (plan.depth < kMinDepth) plan = with(++splits);
  return plan;
}

// Calls f(std::integral_constant) with the number of tiles that the call's rows need.
template <class F>
Error with_tiles(const HeadArgs& args, F&& f) {
  const int64_t rows = expected_rows(args);
  if (rows <= 2 * kTile) return f(std::integral_constant<int, 2>{});
  if (rows <= 4 * kTile) return f(std::integral_constant<int, 4>{});
  return f(std::integral_constant<int, 8>{});
}

// Calls f(kernel, make_plan) with the call's kernel and the function that plans it.
template <class Hidden, class Row, class F>
Error with_kernel(const HeadArgs& args, F&& f) {
  return with_tiles(
      args, [&](auto tiles) { return f(project_mma_kernel<Hidden, Row, tiles>, plan_for<Row, tiles>); });
}

template <class Hidden, class F>
Error with_kernel(const HeadArgs& args, F&& f) {
  switch (args.weight_type) {
    case DType::i8: return with_kernel<Hidden, int8_t>(args, f);
    case DType::f8e4m3: return with_kernel<Hidden, f8e4m3_t>(args, f);
    case DType::f16:
    case DType::bf16: return with_kernel<Hidden, Hidden>(args, f);
    default: return kInvalidValue;
  }
}

template <class F>
Error with_kernel(const HeadArgs& args, F&& f) {
  return args.hidden_type == DType::bf16 ? with_kernel<bf16_t>(args, f) : with_kernel<f16_t>(args, f);
}

}  // namespace

bool fits_mma(const HeadArgs& args) {
  if (args.weight_type == DType::i4) return false;
  const int64_t chunk = 64 / element_size(args.weight_type);
  return args.hidden_type != DType::f32 && args.dim > 0 && args.dim % chunk == 0 && aligned16(args);
}

Error plan_mma(const HeadArgs& args, MmaPlan& plan) {
  return with_kernel(args, [&](auto kernel, auto make_plan) -> Error {
    Loaded loaded;
    if (const Error error = load(kernel, loaded)) return error;
    plan = make_plan(args, loaded.dynamic_shared);
    return 0;
  });
}

Error project_mma(const HeadArgs& args, const Partials& partials, const HeadPlan& plan, void* stream) {
  const MmaPlan& mma = plan.mma_plan;
  Launch how{};
  how.blocks = static_cast<unsigned>(std::max(1, plan.sms / mma.splits) * mma.splits);
  how.threads = kThreads;
  how.shared_bytes = mma.shared_bytes;
  how.stream = stream;
  how.dependent = true;
  how.least_arch = least_arch(args);
  return with_kernel(args, [&](auto kernel, auto) { return launch(kernel, how, args, partials, mma); });
}

}  // namespace microspec
