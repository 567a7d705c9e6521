// SPDX-License-Identifier: Apache-2.0
// sample draws one token a row of hidden (sample_args.h says how), and fills the row's token_logits.
//
// The first block of a row draws. Its threads hold slots t, t + kSelectThreads, …, so the slots of a warp are
// 32 neighbours: an entry. Execution order: (1) find_best, one barrier; (2) a warp's sums of its entries go
// to shared memory, one barrier; (3) every warp finds the entry in which the running sum passes the number;
// (4) the warp of that entry finds the lane. K = 3072 takes these two barriers and no second look at memory.
// Above K = 4096 the logits do not stay in registers, and each of the three passes computes them again.
//
// Each further block of a row writes one span of token_logits: first -inf, and after a barrier the logits of
// the slots whose column is in the span. So no block waits for another. A row of V' = 128256 columns in fp32
// is 513 KB, 16 spans; the 24 KB of ids and dot products that each of them reads lie in the L2 cache.
//
// Not yet measured on a GPU.
#include "sample.h"

#include "common/philox.h"
#include "cuda/block_reduce.cuh"
#include "keys.cuh"

namespace microspec {

namespace {

// Bytes of token_logits that one block writes.
constexpr int64_t kSpan = 1 << 15;
constexpr int kWarps = kSelectThreads / kWarp;

// ---- State in shared memory
struct Scratch {
  uint64_t best[kWarps];  // each warp's largest key
  bool any_nan[kWarps];
  uint64_t sums[kWarps];              // each warp's sum over all its slots
  uint64_t entries[kBatch * kWarps];  // sums of 32 neighbouring slots, in the order of the slots
};

// A thread's slots of one batch.
template <int kCount>
struct Slots {
  float logits[kCount];
  int32_t ids[kCount];  // -1: an empty slot
};

struct Best {
  uint64_t key;  // 0: no slot is active
  bool any_nan;
};

template <class T>
MICROSPEC_DEVICE T largest_of_warp(T value) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, width);
    value = other > value ? other : value;
  }
  return value;
}

template <class T>
MICROSPEC_DEVICE T sum_of_warp(T value) {
#pragma unroll
  for (int width = kWarp / 2; width > 0; width /= 2) value += __shfl_xor_sync(kAllLanes, value, width);
  return value;
}

// Returns the sum of the lanes up to this one.
MICROSPEC_DEVICE uint64_t running_sum_of_warp(uint64_t value) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const uint64_t before = __shfl_up_sync(kAllLanes, value, distance);
    if (lane_index() >= distance) value += before;
  }
  return value;
}

// ---- Step 1: the best slot
template <int kCount>
MICROSPEC_DEVICE void look_at(const Slots<kCount>& slots, Best& best) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (slots.ids[i] < 0) continue;
    const uint32_t order = order_of(slots.logits[i]);
    const uint64_t key = key_of(order, slots.ids[i]);
    best.key = key > best.key ? key : best.key;
    best.any_nan |= order == kNanOrder;
  }
}

MICROSPEC_DEVICE Best best_of_block(const Best& own, Scratch& scratch) {
  const uint64_t key = largest_of_warp(own.key);
  const bool any_nan = __any_sync(kAllLanes, own.any_nan);
  if (lane_index() == 0) {
    scratch.best[warp_index()] = key;
    scratch.any_nan[warp_index()] = any_nan;
  }
  __syncthreads();
  const bool nan_in_warp = lane_index() < kWarps && scratch.any_nan[lane_index()];
  return {largest_of_warp(word_of_warp(scratch.best, uint64_t{0})), __any_sync(kAllLanes, nan_in_warp) != 0};
}

// ---- Step 2: weights
struct Law {
  float top;  // the largest logit
  float temperature;
  float unit;

  MICROSPEC_DEVICE float exponent(float logit) const {
    return logit == top ? 0.0f : (logit - top) / temperature;
  }
  // Returns an active slot's weight; 0 for NaN, which -inf / inf is, too.
  MICROSPEC_DEVICE uint64_t weight(float logit) const {
    const float term = expf(exponent(logit));
    return term > 0.0f ? static_cast<uint64_t>(term * unit) : 0;
  }
};

template <int kCount>
MICROSPEC_DEVICE void weigh(const Slots<kCount>& slots, const Law& law, uint64_t (&weights)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) weights[i] = slots.ids[i] >= 0 ? law.weight(slots.logits[i]) : 0;
}

// Writes the sums of the warp's entries. A barrier must follow.
template <int kCount>
MICROSPEC_DEVICE void sum_entries(const uint64_t (&weights)[kCount], Scratch& scratch) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint64_t sum = sum_of_warp(weights[i]);
    if (lane_index() == 0) scratch.entries[i * kWarps + warp_index()] = sum;
  }
}

// Returns the sum over the block of the threads' sums. A barrier must come before scratch.sums is written
// again.
MICROSPEC_DEVICE uint64_t sum_of_block(uint64_t sum, Scratch& scratch) {
  sum = sum_of_warp(sum);
  if (lane_index() == 0) scratch.sums[warp_index()] = sum;
  __syncthreads();
  return sum_of_warp(word_of_warp(scratch.sums, uint64_t{0}));
}

// ---- Step 3: the entry
//
// The running sums of a batch's entries, the same in every warp: a lane holds kCount * kWarps / 32 of them.
template <int kCount>
class Entries {
  static constexpr int kEach = kCount * kWarps / kWarp;

 public:
  MICROSPEC_DEVICE explicit Entries(const Scratch& scratch) {
    uint64_t own = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      sums_[i] = scratch.entries[lane_index() * kEach + i];
      own += sums_[i];
    }
    const uint64_t sum = running_sum_of_warp(own);
    before_ = sum - own;
    total_ = __shfl_sync(kAllLanes, sum, kWarp - 1);
  }

  MICROSPEC_DEVICE uint64_t total() const { return total_; }

  // Returns the entry in which the running sum passes `left` < total(), and subtracts the sum before it.
  MICROSPEC_DEVICE int find(uint64_t& left) const {
    uint64_t before = before_;
    int entry = -1;
    uint64_t rest = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (before <= left && left - before < sums_[i]) {
        entry = lane_index() * kEach + i;
        rest = left - before;
      }
      before += sums_[i];
    }
    const int lane = __ffs(static_cast<int>(__ballot_sync(kAllLanes, entry >= 0))) - 1;
    left = __shfl_sync(kAllLanes, rest, lane);
    return __shfl_sync(kAllLanes, entry, lane);
  }

 private:
  uint64_t sums_[kEach];
  uint64_t before_;  // of the lanes before this one
  uint64_t total_;
};

// ---- Step 4: the slot
//
// Writes the row's results if this warp has the entry.
template <int kCount>
MICROSPEC_DEVICE void draw_slot(const Slots<kCount>& slots, const uint64_t (&weights)[kCount], int entry,
                                uint64_t left, uint64_t total, bool any_nan, const Law& law,
                                const SampleArgs& sample, int64_t number) {
  if (entry % kWarps != warp_index()) return;
  const int at = entry / kWarps;
  uint64_t weight = weights[0];
  float logit = slots.logits[0];
  int32_t id = slots.ids[0];
#pragma unroll
  for (int i = 1; i < kCount; ++i) {
    weight = i == at ? weights[i] : weight;
    logit = i == at ? slots.logits[i] : logit;
    id = i == at ? slots.ids[i] : id;
  }
  const uint64_t before = running_sum_of_warp(weight) - weight;
  if (before > left || left - before >= weight) return;
  // The largest logit's weight is `unit`: what is left keeps its digits beside 1.
  const float others = static_cast<float>(total - static_cast<uint64_t>(law.unit)) / law.unit;
  const float log_prob = law.exponent(logit) - log1pf(others);
  sample.tokens[number] = sample.token_of(id);
  sample.log_probs[number] = any_nan ? __uint_as_float(0x7fc00000u) : log_prob;
}

MICROSPEC_DEVICE void write(const SampleArgs& sample, int64_t number, int64_t token, float log_prob) {
  if (threadIdx.x != 0) return;
  sample.tokens[number] = token;
  sample.log_probs[number] = log_prob;
}

// Draws row `row` of the launch, row `number` of the call. kWhole: K <= kCount * kSelectThreads.
template <int kCount, bool kWhole>
MICROSPEC_DEVICE void draw(const HeadArgs& args, const Partials& partials, const SampleArgs& sample,
                           int64_t row, int64_t number, int group, Scratch& scratch) {
  if (group < 0) return write(sample, number, -1, -INFINITY);
  constexpr int kStep = kCount * kSelectThreads;
  const int capacity = static_cast<int>(args.capacity);
  Slots<kCount> slots;
  const auto load_from = [&](int first) {
    load_logits(args, partials, row, group, first + static_cast<int>(threadIdx.x), kSelectThreads, slots.ids,
                slots.logits);
  };
  Best best{0, false};
  for (int first = 0; first < capacity; first += kStep) {
    load_from(first);
    look_at(slots, best);
    if (kWhole) break;
  }
  best = best_of_block(best, scratch);
  if (best.key == 0) return write(sample, number, -1, -INFINITY);
  const float temperature = sample.temperatures[number];
  const uint32_t order = order_of(best.key);
  if (!(temperature > 0.0f) || order == kNanOrder) {
    const float log_prob = best.any_nan ? __uint_as_float(0x7fc00000u) : 0.0f;
    return write(sample, number, sample.token_of(static_cast<int32_t>(id_of(best.key))), log_prob);
  }

  const Law law{logit_of_order(order), temperature, sample.unit};
  const uint64_t u = draw_number(sample.seeds[number], sample.positions[number]);
  uint64_t weights[kCount];
  uint64_t total = 0, left = 0;
  if (!kWhole) {
    uint64_t own = 0;
    for (int first = 0; first < capacity; first += kStep) {
      load_from(first);
      weigh(slots, law, weights);
#pragma unroll
      for (int i = 0; i < kCount; ++i) own += weights[i];
    }
    total = sum_of_block(own, scratch);
    left = __umul64hi(u, total);
  }
  for (int first = 0; first < capacity; first += kStep) {
    if (!kWhole) load_from(first);
    weigh(slots, law, weights);
    sum_entries(weights, scratch);
    __syncthreads();
    const Entries<kCount> entries(scratch);
    if (kWhole) {
      total = entries.total();
      left = __umul64hi(u, total);
    }
    if (left < entries.total()) {
      const int entry = entries.find(left);
      return draw_slot(slots, weights, entry, left, total, best.any_nan, law, sample, number);
    }
    left -= entries.total();
    __syncthreads();  // before the entries are written again
  }
}

// ---- token_logits
//
// Fills count elements. Element is an unsigned integer, and `value` its bits.
template <class Element>
MICROSPEC_DEVICE void fill(Element* target, int64_t count, Element value) {
  constexpr int kWide = 16 / sizeof(Element);
  const int64_t misaligned =
      (-reinterpret_cast<intptr_t>(target) & 15) / static_cast<int64_t>(sizeof(Element));
  const int64_t head = misaligned < count ? misaligned : count;
  const int64_t body = (count - head) / kWide;
  const uint32_t word = sizeof(Element) == 4 ? value : value | static_cast<uint32_t>(value) << 16;
  const uint4 words = make_uint4(word, word, word, word);
  uint4* wide = reinterpret_cast<uint4*>(target + head);
  for (int64_t i = threadIdx.x; i < body; i += kSelectThreads) wide[i] = words;
  if (static_cast<int64_t>(threadIdx.x) < head) target[threadIdx.x] = value;
  const int64_t tail = head + body * kWide + threadIdx.x;
  if (tail < count) target[tail] = value;
}

template <class Element>
struct Stored;
template <>
struct Stored<float> {
  using Bits = uint32_t;
  static constexpr Bits kMinusInfinity = 0xff800000u;
  MICROSPEC_DEVICE static Bits of(float logit) { return __float_as_uint(logit); }
};
template <>
struct Stored<f16_t> {
  using Bits = uint16_t;
  static constexpr Bits kMinusInfinity = 0xfc00u;
  MICROSPEC_DEVICE static Bits of(float logit) {
    return static_cast<Bits>(Elements<f16_t>::pack(logit, 0.0f) & 0xffffu);
  }
};
template <>
struct Stored<bf16_t> {
  using Bits = uint16_t;
  static constexpr Bits kMinusInfinity = 0xff80u;
  MICROSPEC_DEVICE static Bits of(float logit) {
    return static_cast<Bits>(Elements<bf16_t>::pack(logit, 0.0f) & 0xffffu);
  }
};

// Writes span `span` of the row of token_logits that belongs to row `row` of the launch.
template <class Element>
MICROSPEC_DEVICE void write_span(const HeadArgs& args, const Partials& partials, const SampleArgs& sample,
                                 int64_t row, int64_t target, int group, int64_t span) {
  using Bits = typename Stored<Element>::Bits;
  constexpr int64_t kColumns = kSpan / static_cast<int64_t>(sizeof(Bits));
  const int64_t begin = span * kColumns;
  const int64_t end = begin + kColumns < sample.logits_columns ? begin + kColumns : sample.logits_columns;
  Bits* columns = static_cast<Bits*>(sample.token_logits) + target * sample.logits_row_stride;
  fill(columns + begin, end - begin, Stored<Element>::kMinusInfinity);
  if (group < 0) return;
  __syncthreads();
  const int32_t* ids = ids_of(args, group);
  for (int slot = threadIdx.x; slot < static_cast<int>(args.capacity); slot += kSelectThreads) {
    const int32_t id = ids[slot];
    if (!is_active(args, id)) continue;
    const int64_t column = sample.token_of(id);
    if (column < begin || column >= end) continue;
    int32_t own_id[1];
    float logit[1];
    load_logits(args, partials, row, group, slot, 1, own_id, logit);
    columns[column] = Stored<Element>::of(logit[0]);
  }
}

// `parts` blocks a row: the one that draws, and those that write token_logits.
template <int kCount, bool kWhole>
MICROSPEC_KERNEL(kSelectThreads, 1)
sample_kernel(HeadArgs args, Partials partials, SampleArgs sample, int64_t first, unsigned parts) {
  MICROSPEC_SHARED(Scratch, scratch, 1);
  ptx::wait_for_earlier_kernels();
  const int64_t row = blockIdx.x / parts, number = first + row;
  const unsigned part = blockIdx.x % parts;
  const int group = group_of(args, row);
  if (part == 0) return draw<kCount, kWhole>(args, partials, sample, row, number, group, *scratch);
  const int64_t target = sample.logit_row_of(number);
  if (target < 0) return;
  switch (sample.logits_type) {
    case DType::f16: return write_span<f16_t>(args, partials, sample, row, target, group, part - 1);
    case DType::bf16: return write_span<bf16_t>(args, partials, sample, row, target, group, part - 1);
    default: return write_span<float>(args, partials, sample, row, target, group, part - 1);
  }
}

}  // namespace

Error sample(const HeadArgs& args, const Partials& partials, const SampleArgs& sample, int64_t first,
             void* stream) {
  const int64_t bytes = sample.token_logits ? sample.logits_columns * element_size(sample.logits_type) : 0;
  const auto parts = static_cast<unsigned>(1 + ceil_div(bytes, kSpan));
  Launch how{};
  how.blocks = static_cast<unsigned>(args.rows) * parts;
  how.threads = kSelectThreads;
  how.stream = stream;
  how.dependent = true;
  // Exact counts for K = 1024, 2048, 3072 (the usual capacity) and 4096.
  constexpr int kQuarter = kBatch / 4;
  const decltype(&sample_kernel<kBatch, true>) kernels[] = {
      sample_kernel<kQuarter, true>, sample_kernel<2 * kQuarter, true>, sample_kernel<3 * kQuarter, true>,
      sample_kernel<kBatch, true>, sample_kernel<kBatch, false>};
  const int64_t quarters = ceil_div<int64_t>(args.capacity, kQuarter * kSelectThreads);
  const int64_t which = quarters < 1 ? 0 : quarters > 4 ? 4 : quarters - 1;
  return launch(kernels[which], how, args, partials, sample, first, parts);
}

}  // namespace microspec
