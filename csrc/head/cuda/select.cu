// From partial dot products to the head's results; one block a row of hidden.
//
// 3072 logits are 12 KB a row, from the second-level cache: what counts is the number of dependent
// steps. A key is the logit's bits in an order of unsigned integers above the id's complement: so
// the largest k keys are the answer, ties included, and no two are equal. They stay in registers;
// block_threshold finds where the k-th lies, the keys above it go to shared memory in any order, and
// each finds its rank by counting those above it.
//
// Started while project still runs; group, ids and scales are fetched before project's results are
// waited for, which is safe, as project waits for earlier kernels before it lets this one start.
//
// Versions: this is the first; not yet measured on a GPU.
#include "cuda/block_select.cuh"
#include "cuda/elements.cuh"
#include "rows.cuh"
#include "select.h"

namespace microspec {

namespace {

// Sixteen warps: 6 keys a thread at K = 3072. Fewer would add to each step of the selection, more to
// the cost of its barrier.
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

// The high word of a key. 0 is an empty slot, 1 a NaN; every number is above them.
constexpr uint32_t kNanOrder = 1;

MICROSPEC_DEVICE uint32_t order_of(float logit) {
  if (logit != logit) return kNanOrder;
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 is equal to 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

MICROSPEC_DEVICE float logit_of_order(uint32_t order) {
  if (order == kNanOrder) return __uint_as_float(0x7fc00000u);
  return __uint_as_float(order & 0x80000000u ? order ^ 0x80000000u : ~order);
}

MICROSPEC_DEVICE uint64_t key_of(float logit, int32_t id) {
  return static_cast<uint64_t>(order_of(logit)) << 32 | ~static_cast<uint32_t>(id);
}
MICROSPEC_DEVICE uint32_t order_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
MICROSPEC_DEVICE int64_t id_of(uint64_t key) { return ~static_cast<uint32_t>(key); }

// -1 for a padding row.
MICROSPEC_DEVICE int group_of(const HeadArgs& args, int64_t row) {
  if (!args.group_ids) return 0;
  const int64_t group = args.long_group_ids ? static_cast<const int64_t*>(args.group_ids)[row]
                                            : static_cast<const int32_t*>(args.group_ids)[row];
  return group >= 0 && group < args.groups ? static_cast<int>(group) : -1;
}

// A slot's id and what turns its dot product into a logit.
struct Slot {
  int32_t id;
  bool active;
  float scale;
  float bias;
};

MICROSPEC_DEVICE float bias_of(const HeadArgs& args, int32_t id) {
  if (!args.bias) return 0.0f;
  if (args.bias_type == DType::f32) return static_cast<const float*>(args.bias)[id];
  const uint32_t bits = static_cast<const uint16_t*>(args.bias)[id];
  float values[2];
  if (args.bias_type == DType::bf16) {
    Elements<bf16_t>::unpack(bits, values);
  } else {
    Elements<f16_t>::unpack(bits, values);
  }
  return values[0];
}

MICROSPEC_DEVICE Slot load_slot(const HeadArgs& args, int group, int slot) {
  Slot result{-1, false, 1.0f, 0.0f};
  if (slot >= args.capacity) return result;
  result.id = ids_of(args, group)[slot];
  result.active = is_active(args, result.id);
  if (!result.active) return result;
  if (args.weight_scale) {
    const int64_t at = args.packed ? static_cast<int64_t>(group) * args.capacity + slot : result.id;
    result.scale = args.weight_scale[at];
  }
  result.bias = bias_of(args, result.id);
  return result;
}

// Of an active slot.
MICROSPEC_DEVICE float logit_of(const HeadArgs& args, const Partials& partials, int64_t row, int slot,
                                const Slot& what) {
  float dot = 0.0f;
  for (int s = 0; s < partials.splits; ++s) {
    dot += partials.data[(s * args.rows + row) * partials.pitch + slot];
  }
  const float logit = args.logit_scale * (dot * what.scale + what.bias);
  return args.softcap > 0.0f ? args.softcap * tanhf(logit / args.softcap) : logit;
}

// A row's keys in registers, kKeys a thread.
template <int kKeys>
struct RowKeys : RegisterKeys<kKeys> {
  // Slots whose ids and scales are under way at once.
  static constexpr int kAhead = 8;

  MICROSPEC_DEVICE RowKeys(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                           uint64_t*) {
#pragma unroll
    for (int first = 0; first < kKeys; first += kAhead) {
      Slot slots[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) slots[i] = load_slot(args, group, slot_of(first + i));
      if (first == 0) ptx::wait_for_earlier_kernels();
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int slot = slot_of(first + i);
        const float logit = slots[i].active ? logit_of(args, partials, row, slot, slots[i]) : 0.0f;
        this->key[first + i] = slots[i].active ? key_of(logit, slots[i].id) : 0;
      }
    }
  }

  MICROSPEC_DEVICE static int slot_of(int i) { return i * kThreads + static_cast<int>(threadIdx.x); }
};

// More than registers hold: in memory, each thread's own.
template <>
struct RowKeys<0> {
  MICROSPEC_DEVICE RowKeys(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                           uint64_t* memory)
      : keys(memory + row * args.capacity), count(static_cast<int>(args.capacity)) {
    ptx::wait_for_earlier_kernels();
    for (int slot = threadIdx.x; slot < count; slot += kThreads) {
      const Slot what = load_slot(args, group, slot);
      keys[slot] = what.active ? key_of(logit_of(args, partials, row, slot, what), what.id) : 0;
    }
  }

  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
    for (int slot = threadIdx.x; slot < count; slot += kThreads) f(keys[slot]);
  }

  uint64_t* keys;
  int count;
};

struct Scratch {
  SelectScratch select;
  uint32_t top[kWarps];     // largest order in a warp
  uint32_t active[kWarps];  // active slots
  uint32_t nans[kWarps];    // slots with a NaN
  float sums[kWarps];       // of exponentials
  uint64_t chosen[kMaxTopK];
  int chosen_count;
};

MICROSPEC_DEVICE float sum_over_warp(float value) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) value += __shfl_xor_sync(kAllLanes, value, width);
  return value;
}

struct Counts {
  uint32_t top;  // order of the largest logit
  int active;
  bool any_nan;
};

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

// Each warp's share of the sum of exponentials, to be read after the next barrier.
template <class Keys>
MICROSPEC_DEVICE void sum_exponentials(const Keys& keys, float largest, Scratch& scratch) {
  float sum = 0.0f;
  keys.visit([&](uint64_t key) {
    if (order_of(key) > kNanOrder) sum += expf(logit_of_order(order_of(key)) - largest);
  });
  sum = sum_over_warp(sum);
  if (lane_index() == 0) scratch.sums[warp_index()] = sum;
}

MICROSPEC_DEVICE float logsumexp_of(const Counts& counts, const Scratch& scratch) {
  if (counts.any_nan) return __uint_as_float(0x7fc00000u);
  const float largest = logit_of_order(counts.top);
  if (fabsf(largest) == INFINITY) return largest;
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += scratch.sums[w];
  return largest + logf(sum);
}

template <class Keys>
MICROSPEC_DEVICE void choose(const Keys& keys, uint64_t threshold, Scratch& scratch) {
  keys.visit([&](uint64_t key) {
    if (key < threshold) return;
    const int place = atomicAdd(&scratch.chosen_count, 1);
    if (place < kMaxTopK) scratch.chosen[place] = key;
  });
}

// The outputs of one row.
struct RowResult {
  float* logits;
  int64_t* token_ids;
  float* logsumexp;

  MICROSPEC_DEVICE void pad(int first, int k) const {
    for (int i = first + threadIdx.x; i < k; i += kThreads) {
      logits[i] = -INFINITY;
      token_ids[i] = -1;
    }
  }
};

MICROSPEC_DEVICE void store_ranked(const Scratch& scratch, int count, const RowResult& result) {
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t key = scratch.chosen[i];
    int rank = 0;
    for (int other = 0; other < count; ++other) {
      rank += scratch.chosen[other] > key || (scratch.chosen[other] == key && other < i);
    }
    result.logits[rank] = logit_of_order(order_of(key));
    result.token_ids[rank] = id_of(key);
  }
}

template <int kKeys>
MICROSPEC_KERNEL(kThreads, 1)
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
  const RowKeys<kKeys> keys(args, partials, row, group, memory);
  const Counts counts = count_row(keys, *scratch);
  const int count = min(selection.k, counts.active);
  if (count == 0) {
    result.pad(0, selection.k);
    if (threadIdx.x == 0) *result.logsumexp = -INFINITY;
    return;
  }
  sum_exponentials(keys, logit_of_order(counts.top), *scratch);
  const KeyBounds bounds = block_key_bounds(keys, count, scratch->select);  // has a barrier
  if (threadIdx.x == 0) *result.logsumexp = logsumexp_of(counts, *scratch);
  const uint64_t threshold =
      counts.active > count ? block_threshold(keys, count, bounds, scratch->select) : 1;
  choose(keys, threshold, *scratch);
  __syncthreads();
  store_ranked(*scratch, count, result);
  result.pad(count, selection.k);
}

constexpr int kLogitsThreads = 256;

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
      if (what.active) logit = logit_of(args, partials, row, slot, what);
    }
    logits[i] = logit;
  }
}

// Keys in registers, by the most a thread may have to hold: up to K = 4096 and 16384.
constexpr int kFewKeys = 8, kManyKeys = 32;

Launch one_block_a_row(const HeadArgs& args, void* stream) {
  Launch how{};
  how.blocks = static_cast<unsigned>(args.rows);
  how.threads = kThreads;
  how.stream = stream;
  how.dependent = true;
  return how;
}

}  // namespace

size_t select_workspace(int64_t rows, int64_t capacity) {
  return capacity <= kManyKeys * kThreads ? 0 : static_cast<size_t>(rows * capacity) * sizeof(uint64_t);
}

Error select(const HeadArgs& args, const Partials& partials, const Selection& selection, void* workspace,
             void* stream) {
  const Launch how = one_block_a_row(args, stream);
  auto* memory = static_cast<uint64_t*>(workspace);
  if (args.capacity <= kFewKeys * kThreads) {
    return launch(select_kernel<kFewKeys>, how, args, partials, selection, memory);
  }
  if (args.capacity <= kManyKeys * kThreads) {
    return launch(select_kernel<kManyKeys>, how, args, partials, selection, memory);
  }
  return launch(select_kernel<0>, how, args, partials, selection, memory);
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
