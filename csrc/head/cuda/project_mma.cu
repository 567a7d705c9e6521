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
// Execution order: (1) ring.cuh copies runs of weights to shared memory, (2) load_hidden fills the registers,
// (3) multiply, (4) store_dots writes a warp's sums to shared memory, (5) store_tile adds the warps' sums and
// writes the partial dot products. Half of the warps do that before they multiply the next tile, the others
// after it. project_mma_kernel runs these steps; plan_for sizes them on the host. warp_tile.cuh has steps 2
// to 4 and the layout of the fragments, warp_tile_4bit.cuh those of 4-bit rows.
//
// Not yet measured on a GPU.
#include "cuda/banks.cuh"
#include "project.h"
#include "ring.cuh"
#include "segments.cuh"
#include "warp_tile.cuh"
#include "warp_tile_4bit.cuh"

namespace microspec {

namespace {

// ---- Constants and shapes
constexpr int kThreads = kRingWarps * kWarp;
// The smallest number of splits of D, even if the registers could hold hidden with fewer.
#ifndef MICROSPEC_MIN_SPLITS
#define MICROSPEC_MIN_SPLITS 1
#endif

MICROSPEC_DEVICE int split_dim(const MmaPlan& plan) { return plan.warp_dim * kRingWarps; }

// What a thread of store_tile adds: four slots of row m.
struct SumQuad {
  int m, quad;

  // Eight lanes read 16 bytes each at a time: two rows that lie four apart, so that they hit every bank once.
  constexpr explicit SumQuad(int index)
      : m(index / 32 * 8 + index % 32 / 8 + index / 4 % 2 * 4), quad(index % 4) {}
  constexpr int place() const { return m * kSlotsPitch + quad * 4; }
};
static_assert(wavefronts<4>([](int lane) { return SumQuad(lane).place(); }) == 4);

// ---- Step 5: add the warps' sums
//
// Adds the warps' sums of a tile's two runs and writes them. Each thread writes four slots of one row of
// hidden.
template <int kWidth>
MICROSPEC_DEVICE void store_tile(const float* sums, const Segment& segment, int low_run, int high_run,
                                 int64_t row_base, const Partials& partials) {
  constexpr int kQuads = kSlots / 4;
  const int tiles = ceil_div(segment.count, kTile);
  for (int o = ptx::computed_here(threadIdx.x); o < tiles * kTile * kQuads; o += kThreads) {
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

// ---- The kernel
//
// What a block needs only from one segment to the next. It lies in shared memory, because 64 rows of hidden
// leave no registers for it.
struct BlockWork {
  int next;            // the block's next piece of work: a segment's index times segment_blocks, plus a part
  int step;            // from one piece to the next
  int segments;        // of the call
  int segment_blocks;  // parts of a segment
};

// Steps 1 to 5 for each segment of rows that the block works on
template <class Hidden, class Row, int kTiles>
MICROSPEC_KERNEL(kThreads, 1)
project_mma_kernel(HeadArgs args, Partials partials, MmaPlan plan) {
  using S = WarpShape<Row, kTiles>;
  MICROSPEC_DYNAMIC_SHARED(shared);
  MICROSPEC_SHARED(SegmentTable, table, 1);
  MICROSPEC_SHARED(uint64_t, full, kMaxDepth);
  MICROSPEC_SHARED(BlockWork, work, 1);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const Segments segments = Segments::of<S::kWidth>(args, table);
  if (segments.count() == 0) return;

  float* sums = reinterpret_cast<float*>(shared);
  const unsigned split_index = blockIdx.x % plan.splits;
  if (threadIdx.x == 0) {
    const int blocks = gridDim.x / plan.splits;
    *work = {static_cast<int>(blockIdx.x / plan.splits), blocks, segments.count(),
             blocks_per_segment(segments.count(), blocks)};
  }
  const unsigned begin = split_index * split_dim(plan);
  const Split split{begin, min(split_dim(plan), static_cast<int>(args.dim - begin))};
  Ring<Row> ring(args, split, plan, full, shared + S::kSums * sizeof(float));
  WarpTile<Hidden, Row, kTiles> tile(split, plan);

  const int run_count = static_cast<int>(ceil_div(args.capacity, int64_t{kRun}));
  while (true) {
    const int segment_blocks = work->segment_blocks;
    const int index = work->next / segment_blocks;
    if (index >= work->segments) break;
    const Segment segment = segments[index];
    const StridedRange runs{work->next % segment_blocks, segment_blocks, run_count};
    const int count = runs.count();
    const int ahead = min(count, plan.depth);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) ring.start(segment.group, runs.at(i), i);
    tile.load_hidden(args, segment);
    const auto store = [&](int i) {
      store_tile<S::kWidth>(sums, segment, runs.at(i), i + 1 < count ? runs.at(i + 1) : -1,
                            split_index * args.rows, partials);
    };
    for (int i = 0; i < count; i += 2) {
      // The ids of the runs to start below, so that no warp waits for them there.
      const int after = i + plan.depth;
      const int32_t ids = ring.load_ids(segment.group, after < count ? runs.at(after) : -1,
                                        after + 1 < count ? runs.at(after + 1) : -1);
      // A scheduler has two warps. One stores the tile before while the other multiplies this one.
      const bool stores_first = warp_index() < kRingWarps / 2;
      if (stores_first && i > 0) store(i - 2);
      const unsigned char* low = ring.take();
      const unsigned char* high = i + 1 < count ? ring.take() : low;
      float dots[kTiles][4] = {};
      tile.multiply(low, high, plan.row_pitch, dots);
      if (!stores_first && i > 0) store(i - 2);
      __syncthreads();  // the sums of the tile before are read, and this tile's places in the ring are free
      store_dots(dots, sums + warp_index() * S::kWidth * kSlotsPitch);
#pragma unroll 1
      for (int next = after; next < min(after + 2, count); ++next) {
        ring.start(segment.group, runs.at(next), next - i - 2, ids, next - after);
      }
      __syncthreads();  // this tile's sums are complete
    }
    if (count > 0) store((count - 1) / 2 * 2);
    __syncthreads();  // all threads have read `work`
    if (threadIdx.x == 0) work->next += work->step;
    __syncthreads();
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
    plan.scales_at = static_cast<int>(split_dim / kColumns<Row> * sizeof(Row));
    const int64_t scales = kIs4Bit<Row> ? scale_bytes(split_dim) : 0;
    plan.row_pitch = plan.scales_at + static_cast<int>(scales) + kRowPad<Row>;
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
    case DType::i4: return with_kernel<Hidden, i4x2_t>(args, f);
    case DType::f4e2m1: return with_kernel<Hidden, f4e2m1x2_t>(args, f);
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
  if (args.hidden_type == DType::f32 || !aligned16(args)) return false;
  // A copy takes the scales of a chunk, 4 bytes. Rows of other types have no such scales.
  if (reinterpret_cast<intptr_t>(args.group_scale) % 4 != 0) return false;
  const int64_t chunk = is_4bit(args.weight_type) ? kChunk<i4x2_t> : 64 / element_size(args.weight_type);
  return args.dim > 0 && args.dim % chunk == 0;
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
