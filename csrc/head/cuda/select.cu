// SPDX-License-Identifier: Apache-2.0
// select turns partial dot products into the head's results, one block a row of hidden.
//
// 3072 logits are 12 KB a row, read from the L2 cache, so the number of dependent steps decides the time.
// Keys (keys.cuh) stay in registers up to K = 4096. block_threshold finds the k-th key. The keys at or above
// it go to shared memory in any order, and each finds its rank by counting the keys above it.
//
// Execution order of select_kernel: load the keys, (1) count_row, (2) sum_exponentials, (3) block_key_bounds
// and block_threshold find the k-th key, and choose collects from there, (4) store_ranked and pad.
// finish_logits_kernel takes its place for sparse_logits, and writes every slot's logit.
//
// select starts while project still runs. We load group, ids and scales before waiting for project. Safe:
// project itself waited for their writers before it let this kernel start.
//
// Not yet measured on a GPU.
#include <algorithm>

#include "keys.cuh"
#include "select.h"

namespace microspec {

namespace {

// ---- State in shared memory
constexpr int kWarps = kSelectThreads / kWarp;

// The block's shared memory.
struct Scratch {
  SelectScratch select;
  uint32_t top[kWarps];     // largest order in each warp
  uint32_t active[kWarps];  // active slots in each warp
  uint32_t nans[kWarps];    // NaNs in each warp
  float sums[kWarps];       // each warp's sum of exponentials
  uint64_t chosen[kMaxTopK];
  int chosen_count;
};

MICROSPEC_DEVICE float sum_over_warp(float value) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) value += __shfl_xor_sync(kAllLanes, value, width);
  return value;
}

// The row's counts, the same in every thread.
struct Counts {
  uint32_t top;  // order of the largest logit
  int active;
  bool any_nan;
};

// ---- Step 1: count the row's active slots and NaNs, and find its largest logit
template <class Keys>
MICROSPEC_DEVICE Counts count_row(const Keys& keys, Scratch& scratch) {
  uint32_t top = 0, active = 0, nans = 0;
  keys.visit([&](uint64_t key) {
    top = max(top, order_of(key));
    active += key != 0;
    nans += order_of(key) == kNanOrder;
  });
  top = __reduce_max_sync(kAllLanes, top);
  active = __reduce_add_sync(kAllLanes, active);
  nans = __reduce_add_sync(kAllLanes, nans);
  if (lane_index() == 0) {
    scratch.top[warp_index()] = top;
    scratch.active[warp_index()] = active;
    scratch.nans[warp_index()] = nans;
  }
  if (threadIdx.x == 0) scratch.chosen_count = 0;
  __syncthreads();
  return {__reduce_max_sync(kAllLanes, word_of_warp(scratch.top, 0u)),
          static_cast<int>(__reduce_add_sync(kAllLanes, word_of_warp(scratch.active, 0u))),
          __reduce_add_sync(kAllLanes, word_of_warp(scratch.nans, 0u)) > 0};
}

// ---- Step 2: logsumexp
//
// Writes each warp's part of the sum of exponentials, to be read after the next barrier.
template <class Keys>
MICROSPEC_DEVICE void sum_exponentials(const Keys& keys, float largest, Scratch& scratch) {
  float sum = 0.0f;
  keys.visit([&](uint64_t key) {
    if (order_of(key) > kNanOrder) sum += expf(logit_of_order(order_of(key)) - largest);
  });
  sum = sum_over_warp(sum);
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

// ---- Step 3: collect the keys at or above the threshold
template <class Keys>
MICROSPEC_DEVICE void choose(const Keys& keys, uint64_t threshold, Scratch& scratch) {
  keys.visit([&](uint64_t key) {
    if (key < threshold) return;
    const int place = atomicAdd(&scratch.chosen_count, 1);
    if (place < kMaxTopK) scratch.chosen[place] = key;
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
// memory is [rows, K] for keys that fit neither in registers nor in shared memory, else null.
template <class Keys>
MICROSPEC_KERNEL(kSelectThreads, 1)
select_kernel(HeadArgs args, Partials partials, Selection selection, uint64_t* memory) {
  MICROSPEC_SHARED(Scratch, scratch, 1);
  const int64_t row = blockIdx.x;
  const int group = group_of(args, row);
  const RowResult result{selection.logits + row * selection.k, selection.token_ids + row * selection.k,
                         selection.logsumexp + row};
  if (group < 0) {
    ptx::wait_for_earlier_kernels();
    result.pad(0, selection.k);
    if (threadIdx.x == 0) *result.logsumexp = -INFINITY;
    return;
  }
  const Keys keys(args, partials, row, group, memory);
  const Counts counts = count_row(keys, *scratch);
  const int count = min(selection.k, counts.active);
  if (count == 0) {
    result.pad(0, selection.k);
    if (threadIdx.x == 0) *result.logsumexp = -INFINITY;
    return;
  }
  sum_exponentials(keys, logit_of_order(counts.top), *scratch);
  const KeyBounds bounds = block_key_bounds(keys, count, scratch->select);  // contains a barrier
  if (threadIdx.x == 0) *result.logsumexp = logsumexp_of(counts, *scratch);
  const uint64_t threshold =
      counts.active > count ? block_threshold(keys, count, bounds, scratch->select) : 1;
  choose(keys, threshold, *scratch);
  __syncthreads();
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
      const Slot what = load_slot(args, group, slot);
      float dots[1];
      load_dots(args, partials, row, slot, 1, dots);
      if (what.active) logit = logit_of(args, dots[0], what);
    }
    logits[i] = logit;
  }
}

// ---- Host: where the keys are kept, and the launches
bool keys_in_registers(int64_t capacity) { return capacity <= kBatch * kSelectThreads; }
bool keys_in_shared(int64_t capacity, const Device& device) {
  return capacity * sizeof(uint64_t) + sizeof(Scratch) <= static_cast<size_t>(device.block_shared);
}

}  // namespace

size_t select_workspace(int64_t rows, int64_t capacity, const Device& device) {
  if (keys_in_registers(capacity) || keys_in_shared(capacity, device)) return 0;
  return rows * capacity * sizeof(uint64_t);
}

Error select(const HeadArgs& args, const Partials& partials, const Selection& selection, void* workspace,
             const Device& device, void* stream) {
  Launch how{};
  how.blocks = static_cast<unsigned>(args.rows);
  how.threads = kSelectThreads;
  how.stream = stream;
  how.dependent = true;
  if (keys_in_registers(args.capacity)) {
    return launch(select_kernel<FewKeys>, how, args, partials, selection, nullptr);
  }
  if (keys_in_shared(args.capacity, device)) {
    how.shared_bytes = args.capacity * sizeof(uint64_t);
    return launch(select_kernel<ManyKeys>, how, args, partials, selection, nullptr);
  }
  return launch(select_kernel<ManyKeys>, how, args, partials, selection, static_cast<uint64_t*>(workspace));
}

Error finish_logits(const HeadArgs& args, const Partials& partials, float* logits, const Device& device,
                    void* stream) {
  const int64_t wanted = ceil_div<int64_t>(args.rows * args.capacity, kLogitsThreads);
  Launch how{};
  how.blocks = static_cast<unsigned>(std::min<int64_t>(wanted, device.sms * 8));
  how.threads = kLogitsThreads;
  how.stream = stream;
  how.dependent = true;
  return launch(finish_logits_kernel, how, args, partials, logits);
}

}  // namespace microspec
