// SPDX-License-Identifier: Apache-2.0
// select turns partial dot products into the head's results, one block a row of hidden.
//
// 3072 logits are 12 KB a row, read from the L2 cache, so the number of dependent steps decides the time.
// Orders (keys.cuh) stay in registers up to K = 4096. block_threshold finds the k-th order. The keys at or
// above it go to shared memory in any order, and each finds its rank by counting the keys above it. Only
// where more slots than wanted have the k-th order, a second threshold over their ids decides.
//
// Execution order of select_kernel: load ids and orders, (1) count_row, (2) sum_exponentials, (3) choose_best
// finds the k-th key and collects from there, (4) store_ranked, logsumexp_of and pad.
// finish_logits_kernel takes its place for sparse_logits, and writes every slot's logit.
//
// select starts while project still runs, and waits for it before it loads anything: only that wait makes the
// writes of the kernels before visible here, project's and those of the ids and scales.
//
// Not yet measured on a GPU.
#include <algorithm>

#include "cuda/warp_sums.cuh"
#include "keys.cuh"
#include "select.h"

namespace microspec {

namespace {

// ---- State in shared memory
constexpr int kWarps = kSelectThreads / kWarp;

// What a warp found in its keys.
struct WarpCounts {
  uint32_t top;      // largest order
  uint32_t floor;    // smallest of its segments' largest orders
  uint32_t active;   // active slots
  uint32_t any_nan;  // 1 if a logit is NaN
};

// The block's shared memory.
struct Scratch {
  SelectScratch select;
  WarpCounts counts[kWarps];
  float sums[kWarps];  // each warp's sum of exponentials
  uint64_t chosen[kMaxTopK];
  int chosen_count;
};

// The row's counts, the same in every thread.
struct Counts {
  uint32_t top;  // order of the largest logit
  int active;
  bool any_nan;
  Bounds<uint32_t> bounds;  // of the k-th order, if at least k slots are active
};

// ---- Step 1: count the row's active slots and NaNs, find its largest logit and bounds of the k-th
//
// The block is divided into at least k segments of up to 32 lanes. Each segment has a largest order, so k
// orders are at or above the smallest of those. That leaves out the sparse lower tail, in which a bisection
// over floats would spend most of its steps. If k exceeds the number of threads, or a segment has no active
// slot, the lower bound is 1: every order.
template <class Keys>
MICROSPEC_DEVICE Counts count_row(const Keys& keys, int k, Scratch& scratch) {
  uint32_t top = 0, active = 0;
  bool any_nan = false;
  keys.visit([&](uint32_t order) {
    top = max(top, order);
    active += order != 0;
    any_nan |= order == kNanOrder;
  });
  uint32_t segment = top;
  top = __reduce_max_sync(kAllLanes, top);
  if (kWarps >= k) {
    segment = top;
  } else {
    for (int width = 2; width < kWarp && kSelectThreads / width >= k; width *= 2) {
      segment = max(segment, __shfl_xor_sync(kAllLanes, segment, width / 2));
    }
    segment = __reduce_min_sync(kAllLanes, segment);
  }
  active = __reduce_add_sync(kAllLanes, active);
  any_nan = __any_sync(kAllLanes, any_nan);
  if (lane_index() == 0) scratch.counts[warp_index()] = {top, segment, active, any_nan};
  if (threadIdx.x == 0) scratch.chosen_count = 0;
  __syncthreads();
  const WarpCounts none{0, ~0u, 0, 0};
  const WarpCounts warp = lane_index() < kWarps ? scratch.counts[lane_index()] : none;
  top = __reduce_max_sync(kAllLanes, warp.top);
  segment = kSelectThreads >= k ? __reduce_min_sync(kAllLanes, warp.floor) : 0;
  return {top,
          static_cast<int>(__reduce_add_sync(kAllLanes, warp.active)),
          __any_sync(kAllLanes, warp.any_nan != 0) != 0,
          {max(segment, 1u), top + 1}};
}

// ---- Step 2: logsumexp
//
// Writes each warp's part of the sum of exponentials, to be read after the next barrier.
template <class Keys>
MICROSPEC_DEVICE void sum_exponentials(const Keys& keys, float largest, Scratch& scratch) {
  float sums[1] = {};
  keys.visit([&](uint32_t order) {
    const float term = expf(logit_of_order(order) - largest);
    sums[0] += order > kNanOrder ? term : 0.0f;
  });
  const float sum = sums_over_warp(sums);
  if (lane_index() == 0) scratch.sums[warp_index()] = sum;
}

// Returns the row's logsumexp from the warps' sums; NaN if any logit is NaN.
MICROSPEC_DEVICE float logsumexp_of(const Counts& counts, const Scratch& scratch) {
  if (counts.any_nan) return __uint_as_float(0x7fc00000u);
  const float largest = logit_of_order(counts.top);
  if (fabsf(largest) == INFINITY) return largest;
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += scratch.sums[w];
  return largest + logf(sum);
}

// ---- Step 3: collect the best keys
//
// The ids of the slots that tie at an order, as keys for block_threshold: the lower id is the larger key.
template <class Keys>
struct TiedIds {
  static constexpr uint32_t kLargest = 0x80000000u;  // of id 0
  const Keys& keys;
  uint32_t order;

  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
    keys.visit_ids([&](uint32_t other, auto id) { f(other == order ? kLargest - id() : 0u); });
  }
};

MICROSPEC_DEVICE void collect(uint32_t order, int32_t id, Scratch& scratch) {
  const int place = atomicAdd(&scratch.chosen_count, 1);
  if (place < kMaxTopK) scratch.chosen[place] = key_of(order, id);
}

// Collects the best of the slots that tie at `order`, and all slots above. `wanted` keys in all.
template <class Keys>
MICROSPEC_DEVICE void choose_tied(const Keys& keys, uint32_t order, int wanted, Scratch& scratch) {
  keys.visit_ids([&](uint32_t other, auto id) {
    if (other > order) collect(other, id(), scratch);
  });
  __syncthreads();
  wanted -= scratch.chosen_count;
  const TiedIds<Keys> ids{keys, order};
  const Bounds<uint32_t> all{1, TiedIds<Keys>::kLargest + 1};
  const uint32_t threshold = block_threshold(ids, wanted, all, scratch.select).value;
  ids.visit([&](uint32_t tied) {
    if (tied >= threshold) collect(order, static_cast<int32_t>(TiedIds<Keys>::kLargest - tied), scratch);
  });
}

// Collects the `count` best keys. A barrier must follow.
template <class Keys>
MICROSPEC_DEVICE void choose_best(const Keys& keys, int count, const Counts& counts, Scratch& scratch) {
  Threshold<uint32_t> threshold{1, true};
  if (counts.active > count) threshold = block_threshold(keys, count, counts.bounds, scratch.select);
  if (!threshold.exact) return choose_tied(keys, threshold.value, count, scratch);
  keys.visit_ids([&](uint32_t order, auto id) {
    if (order >= threshold.value) collect(order, id(), scratch);
  });
}

// ---- Step 4: rank and write
//
// The outputs of one row.
struct RowResult {
  float* logits;
  int64_t* token_ids;
  float* logsumexp;

  // Fills the entries from `first` on as the contract does if the row has fewer than k active slots.
  MICROSPEC_DEVICE void pad(int first, int k) const {
    for (int i = first + threadIdx.x; i < k; i += kSelectThreads) {
      logits[i] = -INFINITY;
      token_ids[i] = -1;
    }
  }
};

// Writes the chosen keys' logits and ids, best first. Each thread ranks its keys against all others.
MICROSPEC_DEVICE void store_ranked(const Scratch& scratch, int count, const RowResult& result) {
  for (int i = threadIdx.x; i < count; i += kSelectThreads) {
    const uint64_t key = scratch.chosen[i];
    int rank = 0;
    for (int other = 0; other < count; ++other) {
      rank += scratch.chosen[other] > key || (scratch.chosen[other] == key && other < i);
    }
    result.logits[rank] = logit_of_order(order_of(key));
    result.token_ids[rank] = id_of(key);
  }
}

// ---- The kernels
//
// memory is [rows, K] for orders that fit neither in registers nor in shared memory, else null.
template <class Keys>
MICROSPEC_KERNEL(kSelectThreads, 1)
select_kernel(HeadArgs args, Partials partials, Selection selection, uint32_t* memory) {
  MICROSPEC_SHARED(Scratch, scratch, 1);
  MICROSPEC_DYNAMIC_SHARED(dynamic);
  ptx::wait_for_earlier_kernels();
  const int64_t row = blockIdx.x;
  const int group = group_of(args, row);
  const RowResult result{selection.logits + row * selection.k, selection.token_ids + row * selection.k,
                         selection.logsumexp + row};
  if (group < 0) {
    result.pad(0, selection.k);
    if (threadIdx.x == 0) *result.logsumexp = -INFINITY;
    return;
  }
  const Keys keys(args, partials, row, group,
                  memory ? memory + row * args.capacity : reinterpret_cast<uint32_t*>(dynamic));
  const Counts counts = count_row(keys, selection.k, *scratch);
  const int count = min(selection.k, counts.active);
  if (count == 0) {
    result.pad(0, selection.k);
    if (threadIdx.x == 0) *result.logsumexp = -INFINITY;
    return;
  }
  sum_exponentials(keys, logit_of_order(counts.top), *scratch);
  choose_best(keys, count, counts, *scratch);
  __syncthreads();
  // The first warps rank.
  if (threadIdx.x == kSelectThreads - 1) *result.logsumexp = logsumexp_of(counts, *scratch);
  store_ranked(*scratch, count, result);
  result.pad(count, selection.k);
}

constexpr int kLogitsThreads = 256;

// Writes logits [rows, K]; -inf at empty slots and in padding rows.
MICROSPEC_KERNEL(kLogitsThreads, 4)
finish_logits_kernel(HeadArgs args, Partials partials, float* logits) {
  ptx::wait_for_earlier_kernels();
  const int64_t count = args.rows * args.capacity;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kLogitsThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLogitsThreads + threadIdx.x; i < count; i += step) {
    const int64_t row = i / args.capacity;
    const int slot = static_cast<int>(i % args.capacity);
    const int group = group_of(args, row);
    float logit = -INFINITY;
    if (group >= 0) {
      int32_t ids[1];
      float values[1];
      load_logits(args, partials, row, group, slot, 1, ids, values);
      if (ids[0] >= 0) logit = values[0];
    }
    logits[i] = logit;
  }
}

// ---- Host: where the orders are kept, and the launches
bool orders_in_registers(int64_t capacity) { return capacity <= kBatch * kSelectThreads; }

}  // namespace

Error select_workspace(int64_t rows, int64_t capacity, size_t& bytes) {
  bytes = 0;
  if (orders_in_registers(capacity)) return 0;
  Loaded loaded;
  if (const Error error = load(select_kernel<ManyKeys>, loaded)) return error;
  const bool fit = capacity * static_cast<int64_t>(sizeof(uint32_t)) <= loaded.dynamic_shared;
  if (!fit) bytes = rows * capacity * sizeof(uint32_t);
  return 0;
}

Error select(const HeadArgs& args, const Partials& partials, const Selection& selection, void* workspace,
             void* stream) {
  Launch how{};
  how.blocks = static_cast<unsigned>(args.rows);
  how.threads = kSelectThreads;
  how.stream = stream;
  how.dependent = true;
  if (orders_in_registers(args.capacity)) {
    // Exact counts for K = 1024, 2048, 3072 (the usual capacity) and 4096.
    constexpr int kQuarter = kBatch / 4;
    decltype(&select_kernel<ManyKeys>) kernels[] = {
        select_kernel<FewKeys<kQuarter>>, select_kernel<FewKeys<2 * kQuarter>>,
        select_kernel<FewKeys<3 * kQuarter>>, select_kernel<FewKeys<kBatch>>};
    const int64_t quarters = ceil_div<int64_t>(args.capacity, kQuarter * kSelectThreads);
    const auto kernel = kernels[std::max<int64_t>(quarters, 1) - 1];
    return launch(kernel, how, args, partials, selection, nullptr);
  }
  if (!workspace) how.shared_bytes = args.capacity * sizeof(uint32_t);
  return launch(select_kernel<ManyKeys>, how, args, partials, selection, static_cast<uint32_t*>(workspace));
}

Error finish_logits(const HeadArgs& args, const Partials& partials, float* logits, const HeadPlan& plan,
                    void* stream) {
  const int64_t wanted = ceil_div<int64_t>(args.rows * args.capacity, kLogitsThreads);
  Launch how{};
  how.blocks = static_cast<unsigned>(std::min<int64_t>(wanted, plan.sms * 8));
  how.threads = kLogitsThreads;
  how.stream = stream;
  how.dependent = true;
  return launch(finish_logits_kernel, how, args, partials, logits);
}

}  // namespace microspec
