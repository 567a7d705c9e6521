// SPDX-License-Identifier: Apache-2.0
// project_simt multiplies few rows of hidden by the active rows with FMAs. Weights go from memory straight to
// registers.
//
// Floor: the active rows' bytes over the memory's bandwidth. A kernel misses it if too few loads are in
// flight. At 3 TB/s and about 0.7 us, an H100's SM needs 16 KB of loads in flight, and two to four times that
// in practice. Here every lane keeps kAhead rows' loads in flight, with no barrier between them. In aligned
// rows that is 128 KB an SM for one row of hidden and 64 KB for four, and half of it for 8-bit elements.
//
// A row's elements are split over a block's warps, so a lane's elements of hidden stay in registers for all
// rows. The slots are dealt to the blocks one by one, so all blocks are equally busy even if only the first
// slots of a vocabulary are occupied. The order of the sums is fixed: lane, then warp, then block.
//
// Layout of a row of D elements. A load is 16 bytes a lane, hence 512 consecutive bytes a warp. With 16-bit
// elements (kVector = 8, kLoads = 2):
//
//       element   0                      248       256                    504       512
//                 | lane 0 | …           | lane 31 | lane 0 | …           | lane 31 | lane 0 | …
//                 | load 0                         | load 1                         | load 0
//                 | warp 0                                                          | warp 1
//
// A lane holds the same elements of up to kRows rows of hidden. If D has more elements than the block's warps
// take at once, the next pass takes the elements that follow.
//
// Execution order: (1) LaneLoader loads hidden, then a round's rows of weights, kAhead of them ahead of their
// use, (2) multiply multiplies and sums_over_warp adds the lanes' sums, (3) store adds the warps' sums and
// writes the dot products.
//
// Not yet measured on a GPU.
#include "cuda/elements.cuh"
#include "cuda/warp_sums.cuh"
#include "project.h"
#include "rows.cuh"
#include "segments.cuh"

namespace microspec {

namespace {

// ---- Constants
//
// 512 threads of 128 registers fill an SM's register file, as one block or as several small ones.
constexpr int kMaxWarps = 16;
constexpr int kMaxThreads = kMaxWarps * kWarp;
// Slots between two barriers: one id for each lane.
constexpr int kRound = kWarp;

// Elements of D in 16 bytes of a row. Of i4 rows, that is one group, which has one scale; of e2m1 rows, two.
template <class Row>
constexpr int kLoadElements = kVector<Row> * kColumns<Row>;
static_assert(kLoadElements<i4x2_t> == kScaleGroup && kLoadElements<f4e2m1x2_t> == 2 * kE2m1Group);
// 16-byte loads of one row by one lane. A second load of 8-bit elements would make 32 elements a lane, and
// hidden would need too many registers.
template <class Row>
constexpr int kLoads = sizeof(Row) == 1 ? 1 : 2;
template <class Row>
constexpr int kLaneElements = kLoads<Row> * kLoadElements<Row>;
template <class Row>
constexpr int kWarpElements = kWarp * kLaneElements<Row>;

// Rows that a lane loads ahead: 64 registers beside one row of hidden, 32 beside four. Without alignment it
// is one row, because elements that are loaded one by one need registers too.
// 4-bit rows have 32 elements a lane, whose hidden leaves fewer registers.
template <class Row, int kRows, bool kAligned>
constexpr int kAhead = !kAligned      ? 1
                       : kRows > 1    ? 4
                       : kIs4Bit<Row> ? 6
                                      : 8;

// ---- Step 1: load a lane's elements of a row of weights or of hidden
// What a lane loads of one row in one pass over D.
template <class Row>
struct LaneRow {
  uint4 words[kLoads<Row>];
  uint16_t scale;  // of i4 rows, a bf16; of e2m1 rows, an e4m3 in each half
};

// Knows which elements of a row are the lane's in one pass over D.
template <class Row, bool kAligned>
class LaneLoader {
 public:
  MICROSPEC_DEVICE LaneLoader(int64_t dim, int pass) : dim_(dim) {
    const int64_t warp = static_cast<int64_t>(pass) * blockDim.x / kWarp + warp_index();
    begin_ = warp * kWarpElements<Row> + lane_index() * kLoadElements<Row>;
  }

  MICROSPEC_DEVICE void load_row(const HeadArgs& args, int group, int slot, int32_t id,
                                 LaneRow<Row>& part) const {
    const Row* row = row_of<Row>(args, group, slot, id);
#pragma unroll
    for (int i = 0; i < kLoads<Row>; ++i) part.words[i] = load16(row, element(i));
    if constexpr (kIsInt4<Row>) {
      part.scale = 0;
      if (begin_ < dim_) part.scale = group_scales_of(args, group, slot, id)[begin_ / kScaleGroup].bits;
    }
    if constexpr (kIsE2m1<Row>) {
      // A row's scales may start at an odd byte, and its last load may have one group.
      const auto* scales = group_scales_of<f8e4m3_t>(args, group, slot, id) + begin_ / kE2m1Group;
      part.scale = begin_ < dim_ ? scales[0].bits : 0;
      if (begin_ + kE2m1Group < dim_) part.scale |= scales[1].bits << 8;
    }
  }

  template <class Hidden>
  MICROSPEC_DEVICE void load_hidden(const Hidden* hidden, float (&values)[kLaneElements<Row>]) const {
#pragma unroll
    for (int i = 0; i < kLaneElements<Row>; i += kVector<Hidden>) {
      unpack16<Hidden>(load16(hidden, element(i / kLoadElements<Row>) + i % kLoadElements<Row>), values + i);
    }
  }

 private:
  // The first element of the lane's load i. The lanes of a warp read 512 consecutive bytes.
  MICROSPEC_DEVICE int64_t element(int i) const { return begin_ + i * kWarp * kLoadElements<Row>; }

  template <class Element>
  MICROSPEC_DEVICE uint4 load16(const Element* source, int64_t at) const {
    if (at >= dim_) return make_uint4(0, 0, 0, 0);
    if constexpr (kAligned) return ptx::load_once16(source + at / kColumns<Element>);
    return load_elements(source + at / kColumns<Element>, (dim_ - at) / kColumns<Element>);
  }

  int64_t dim_;
  int64_t begin_;
};

// ---- Step 2: multiply, and add over the lanes of a warp
// Removes the lowest set bit and returns its index.
MICROSPEC_DEVICE int take_lowest(unsigned& set) {
  const int lowest = __ffs(set) - 1;
  set &= set - 1;
  return lowest;
}

// ---- Steps 1 to 3 for the slots of a segment that a block takes: load, multiply, and add over the warps of
// a block
template <class Hidden, class Row, int kRows, bool kAligned>
class Projector {
 public:
  // sums is [kMaxWarps, kRound, kRows] in shared memory: lanes store and read consecutive words.
  MICROSPEC_DEVICE Projector(const HeadArgs& args, const Partials& partials, float* sums)
      : args_(args), partials_(partials), sums_(sums) {
    const int64_t pass_elements = static_cast<int64_t>(blockDim.x) / kWarp * kWarpElements<Row>;
    passes_ = static_cast<int>(max(int64_t{1}, ceil_div(args.dim, pass_elements)));
  }

  MICROSPEC_DEVICE void project(const Segment& segment, const StridedRange& slots) {
    const int32_t* ids = ids_of(args_, segment.group);
    const int count = slots.count();
    if (passes_ == 1) load_hidden(segment, 0);
    for (int first = 0; first < count; first += kRound) {
      const int i = first + lane_index();
      const int32_t id = i < count ? ids[slots.at(i)] : -1;
      const unsigned active = __ballot_sync(kAllLanes, is_active(args_, id));
      for (int pass = 0; pass < passes_; ++pass) {
        if (passes_ > 1) load_hidden(segment, pass);
        multiply(segment.group, slots, first, id, active, pass);
      }
      __syncthreads();
      store(segment, slots, first, active);
      __syncthreads();
    }
  }

 private:
  MICROSPEC_DEVICE void load_hidden(const Segment& segment, int pass) {
    const LaneLoader<Row, kAligned> loader(args_.dim, pass);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      if (m < segment.count) {
        const auto* hidden = static_cast<const Hidden*>(args_.hidden);
        loader.load_hidden(hidden + segment.row(m) * args_.hidden_row_stride, hidden_[m]);
      } else {
#pragma unroll
        for (float& value : hidden_[m]) value = 0.0f;
      }
    }
  }

  MICROSPEC_DEVICE void multiply(int group, const StridedRange& slots, int first, int32_t id, unsigned active,
                                 int pass) {
    const LaneLoader<Row, kAligned> loader(args_.dim, pass);
    LaneRow<Row> ahead[kAhead<Row, kRows, kAligned>];
    unsigned to_load = active, to_use = active;
    const auto load = [&](LaneRow<Row>& part) {
      const int j = take_lowest(to_load);
      const int32_t row_id = __shfl_sync(kAllLanes, id, j);
      loader.load_row(args_, group, slots.at(first + j), row_id, part);
    };
#pragma unroll
    for (int a = 0; a < kAhead<Row, kRows, kAligned>; ++a) {
      if (to_load) load(ahead[a]);
    }
    while (to_use) {
#pragma unroll
      for (int a = 0; a < kAhead<Row, kRows, kAligned>; ++a) {
        if (!to_use) break;
        const int j = take_lowest(to_use);
        float dots[kRows] = {};
        if constexpr (kIsE2m1<Row>) {
          multiply_add_groups(ahead[a], dots);
        } else {
#pragma unroll
          for (int i = 0; i < kLoads<Row>; ++i) multiply_add(ahead[a].words[i], i, dots);
        }
        if constexpr (kIsInt4<Row>) {
#pragma unroll
          for (float& dot : dots) dot *= __uint_as_float(static_cast<uint32_t>(ahead[a].scale) << 16);
        }
        if (to_load) load(ahead[a]);
        const float sum = sums_over_warp(dots);
        constexpr int kLanes = kWarp / kRows;
        if (lane_index() % kLanes == 0) {
          float& place = sums_[warp_index() * kRound * kRows + j * kRows + lane_index() / kLanes];
          place = pass == 0 ? sum : place + sum;
        }
      }
    }
  }

  MICROSPEC_DEVICE void multiply_add(const uint4& words, int load, float (&dots)[kRows]) const {
    float weights[kLoadElements<Row>];
    unpack16<Row>(words, weights);
#pragma unroll
    for (int e = 0; e < kLoadElements<Row>; ++e) {
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        dots[m] = fmaf(weights[e], hidden_[m][load * kLoadElements<Row> + e], dots[m]);
      }
    }
  }

  // Multiplies a load's two groups of e2m1 columns, each by its scale.
  MICROSPEC_DEVICE void multiply_add_groups(const LaneRow<Row>& part, float (&dots)[kRows]) const {
    constexpr int kGroup = static_cast<int>(kE2m1Group);
    float weights[kLoadElements<Row>];
    unpack16<Row>(part.words[0], weights);
#pragma unroll
    for (int g = 0; g < kLoadElements<Row> / kGroup; ++g) {
      float sums[kRows] = {};
#pragma unroll
      for (int e = g * kGroup; e < (g + 1) * kGroup; ++e) {
#pragma unroll
        for (int m = 0; m < kRows; ++m) sums[m] = fmaf(weights[e], hidden_[m][e], sums[m]);
      }
      const float scale = float_of_e4m3(part.scale >> (8 * g) & 0xffu) * kE2m1Gain;
#pragma unroll
      for (int m = 0; m < kRows; ++m) dots[m] = fmaf(sums[m], scale, dots[m]);
    }
  }

  // Step 3: adds the warps' sums of a round's slots and writes the partial dot products.
  MICROSPEC_DEVICE void store(const Segment& segment, const StridedRange& slots, int first,
                              unsigned active) const {
    const int warps = blockDim.x / kWarp;
    for (int o = threadIdx.x; o < kRound * kRows; o += blockDim.x) {
      const int j = o / kRows, m = o % kRows;
      if (m >= segment.count || !(active >> j & 1)) continue;
      float sum = 0.0f;
      for (int w = 0; w < warps; ++w) sum += sums_[w * kRound * kRows + o];
      partials_.data[segment.row(m) * partials_.pitch + slots.at(first + j)] = sum;
    }
  }

  const HeadArgs& args_;
  const Partials& partials_;
  float* sums_;
  int passes_;
  float hidden_[kRows][kLaneElements<Row>];
};

// ---- The kernel
template <class Hidden, class Row, int kRows, bool kAligned>
MICROSPEC_KERNEL(kMaxThreads, 1)
project_simt_kernel(HeadArgs args, Partials partials) {
  MICROSPEC_SHARED(SegmentTable, table, 1);
  MICROSPEC_SHARED(float, sums, kRound * kRows * kMaxWarps);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const Segments segments = Segments::of<kRows>(args, table);
  if (segments.count() == 0) return;
  const int segment_blocks = blocks_per_segment(segments.count(), gridDim.x);
  Projector<Hidden, Row, kRows, kAligned> projector(args, partials, sums);
  for (int work = blockIdx.x; work < segments.count() * segment_blocks; work += gridDim.x) {
    projector.project(segments[work / segment_blocks],
                      {work % segment_blocks, segment_blocks, static_cast<int>(args.capacity)});
  }
}

// ---- Host: the launch
// Rows of hidden that share a loaded row: their elements stay in registers, 16 of each (32 for 4-bit rows).
template <class Row>
constexpr int kSharing = kIs4Bit<Row> ? kSimtRows / 2 : kSimtRows;

template <class Hidden, class Row>
Error start(const HeadArgs& args, const Partials& partials, const HeadPlan& plan, void* stream) {
  const int64_t warps =
      std::min<int64_t>(kMaxWarps, std::max<int64_t>(1, ceil_div<int64_t>(args.dim, kWarpElements<Row>)));
  Launch how{};
  how.threads = static_cast<unsigned>(warps * kWarp);
  how.blocks = static_cast<unsigned>(plan.sms * (kMaxWarps / warps));
  how.stream = stream;
  how.dependent = true;
  how.least_arch = least_arch(args);
  if (!aligned16(args))
    return launch(project_simt_kernel<Hidden, Row, kSharing<Row>, false>, how, args, partials);
  if (expected_rows(args) == 1) return launch(project_simt_kernel<Hidden, Row, 1, true>, how, args, partials);
  return launch(project_simt_kernel<Hidden, Row, kSharing<Row>, true>, how, args, partials);
}

template <class Hidden>
Error start(const HeadArgs& args, const Partials& partials, const HeadPlan& plan, void* stream) {
  switch (args.weight_type) {
    case DType::i8: return start<Hidden, int8_t>(args, partials, plan, stream);
    case DType::f8e4m3: return start<Hidden, f8e4m3_t>(args, partials, plan, stream);
    case DType::i4: return start<Hidden, i4x2_t>(args, partials, plan, stream);
    case DType::f4e2m1: return start<Hidden, f4e2m1x2_t>(args, partials, plan, stream);
    case DType::f32:
    case DType::f16:
    case DType::bf16: return start<Hidden, Hidden>(args, partials, plan, stream);
  }
  return kInvalidValue;
}

}  // namespace

Error project_simt(const HeadArgs& args, const Partials& partials, const HeadPlan& plan, void* stream) {
  switch (args.hidden_type) {
    case DType::bf16: return start<bf16_t>(args, partials, plan, stream);
    case DType::f16: return start<f16_t>(args, partials, plan, stream);
    case DType::f32: return start<float>(args, partials, plan, stream);
    default: return kInvalidValue;
  }
}

}  // namespace microspec
