// SPDX-License-Identifier: Apache-2.0
// Keys of a row's logits. The high word is the logit's bits in the order of unsigned integers, the low word
// is the complement of the token id. So the largest k keys are the top k (the lower id wins a tie), and no
// two keys are equal.
//
//       bit 63                       32 31                        0
//           | order_of(logit)          | ~id                      |
//           | 0: an empty slot; 1: NaN | 0 only for an empty slot |
//
// Thread t of select holds the keys of slots t, t + kSelectThreads, t + 2 kSelectThreads, …
#pragma once

#include "cuda/block_select.cuh"
#include "cuda/elements.cuh"
#include "project.h"
#include "rows.cuh"

namespace microspec {

// Sixteen warps a row: 6 keys a thread at K = 3072. Fewer warps would lengthen each step of the selection;
// more would raise the cost of its barrier.
#ifndef MICROSPEC_SELECT_THREADS
#define MICROSPEC_SELECT_THREADS 512
#endif
constexpr int kSelectThreads = MICROSPEC_SELECT_THREADS;
// Keys that a thread loads at once and can hold in registers: enough for K = 4096.
constexpr int kBatch = 4096 / kSelectThreads;

// The high word of a NaN's key. An empty slot's high word is 0, and every number's is above 1.
constexpr uint32_t kNanOrder = 1;

// Returns bits that order as the logits do, with NaN below -inf.
MICROSPEC_DEVICE uint32_t order_of(float logit) {
  if (logit != logit) return kNanOrder;
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 equals 0
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

// A slot's id, and the scale and bias that turn its dot product into a logit.
struct Slot {
  int32_t id;
  bool active;
  float scale;
  float bias;
};

// Returns the token's bias in fp32; 0 without a bias.
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

// Loads a slot's id, scale and bias. A slot at or above K, or with an invalid id, is not active.
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

// Applies the slot's scale and bias, the logit scale and the cap.
MICROSPEC_DEVICE float logit_of(const HeadArgs& args, float dot, const Slot& slot) {
  const float logit = args.logit_scale * (dot * slot.scale + slot.bias);
  return args.softcap > 0.0f ? args.softcap * tanhf(logit / args.softcap) : logit;
}

// Sums the splits' partial dot products in the order of the splits, for slots first, first + step, … The
// loads of four splits are all issued before the first is used. Otherwise each would take its own trip to the
// L2 cache.
template <int kCount>
MICROSPEC_DEVICE void load_dots(const HeadArgs& args, const Partials& partials, int64_t row, int64_t first,
                                int64_t step, float (&dots)[kCount]) {
  constexpr int kSplits = 4;
#pragma unroll
  for (float& dot : dots) dot = 0.0f;
  for (int split = 0; split < partials.splits; split += kSplits) {
    float partial[kSplits][kCount];
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      const float* source = partials.data + ((split + s) * args.rows + row) * partials.pitch;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int64_t slot = first + i * step;
        partial[s][i] = split + s < partials.splits && slot < args.capacity ? source[slot] : 0.0f;
      }
    }
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) dots[i] += partial[s][i];
    }
  }
}

// Loads a thread's keys of slots first + thread, first + thread + kSelectThreads, …
template <int kCount>
MICROSPEC_DEVICE void load_keys(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                                int first, uint64_t (&keys)[kCount]) {
  Slot slots[kCount];
  const int slot = first + static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < kCount; ++i) slots[i] = load_slot(args, group, slot + i * kSelectThreads);
  ptx::wait_for_earlier_kernels();
  float dots[kCount];
  load_dots(args, partials, row, slot, kSelectThreads, dots);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    keys[i] = slots[i].active ? key_of(logit_of(args, dots[i], slots[i]), slots[i].id) : 0;
  }
}

// A row's keys in registers, for K <= kBatch * kSelectThreads.
struct FewKeys : RegisterKeys<kBatch> {
  MICROSPEC_DEVICE FewKeys(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                           uint64_t*) {
    load_keys(args, partials, row, group, 0, key);
  }
};

// A row's keys in memory, for a larger K: in shared memory if they fit. Each thread reads only keys that it
// wrote.
class ManyKeys {
 public:
  MICROSPEC_DEVICE ManyKeys(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                            uint64_t* memory)
      : count_(static_cast<int>(args.capacity)) {
    MICROSPEC_DYNAMIC_SHARED(shared);
    keys_ = memory ? memory + row * args.capacity : reinterpret_cast<uint64_t*>(shared);
    for (int first = 0; first < count_; first += kBatch * kSelectThreads) {
      uint64_t batch[kBatch];
      load_keys(args, partials, row, group, first, batch);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int slot = first + i * kSelectThreads + static_cast<int>(threadIdx.x);
        if (slot < count_) keys_[slot] = batch[i];
      }
    }
  }

  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
    for (int slot = threadIdx.x; slot < count_; slot += kSelectThreads) f(keys_[slot]);
  }

 private:
  uint64_t* keys_;
  int count_;
};

}  // namespace microspec
