// SPDX-License-Identifier: Apache-2.0
// Keys of a row's logits. The high word is the logit's bits in the order of unsigned integers, the low word
// is the complement of the token id. So the largest k keys are the top k (the lower id wins a tie), and no
// two keys are equal.
//
//       bit 63                       32 31                        0
//           | order_of(logit)          | ~id                      |
//           | 0: an empty slot; 1: NaN | 0 only for an empty slot |
//
// Selection works on the high words, the orders, and looks at ids only where orders tie. Thread t of select
// holds the orders of slots t, t + kSelectThreads, t + 2 kSelectThreads, …
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
// Orders that a thread loads at once and can hold in registers: enough for K = 4096.
constexpr int kBatch = 4096 / kSelectThreads;

// The high word of a NaN's key. An empty slot's high word is 0, and every number's is above 1.
constexpr uint32_t kNanOrder = 1;

constexpr uint32_t kSign = 0x80000000u;

// Returns all ones if the highest bit is set, else 0.
MICROSPEC_DEVICE uint32_t all_if_negative(uint32_t bits) {
  return static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31);
}

// Returns bits that order as the logits do, with NaN below -inf.
MICROSPEC_DEVICE uint32_t order_of(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 equals 0
  const uint32_t order = bits ^ (all_if_negative(bits) | kSign);
  return logit == logit ? order : kNanOrder;
}

MICROSPEC_DEVICE float logit_of_order(uint32_t order) {
  const uint32_t bits = order ^ (~all_if_negative(order) | kSign);
  return __uint_as_float(order == kNanOrder ? 0x7fc00000u : bits);
}

MICROSPEC_DEVICE uint64_t key_of(uint32_t order, int32_t id) {
  return static_cast<uint64_t>(order) << 32 | ~static_cast<uint32_t>(id);
}
MICROSPEC_DEVICE uint32_t order_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
MICROSPEC_DEVICE int64_t id_of(uint64_t key) { return ~static_cast<uint32_t>(key); }

// Loads the partial dot products of a row's slots first, first + step, … The loads of four splits are all
// issued before the first is used. Otherwise each would take its own trip to the L2 cache. Adds the splits in
// their order.
template <int kCount>
MICROSPEC_DEVICE void load_dots(const HeadArgs& args, const Partials& partials, int64_t row, int first,
                                int step, float (&dots)[kCount]) {
  constexpr int kSplits = 4;
  const int capacity = static_cast<int>(args.capacity);
  const auto load = [&](int split, float (&values)[kCount]) {
    const float* source = partials.data + (split * args.rows + row) * partials.pitch + first;
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = first + i * step < capacity ? source[i * step] : 0.0f;
  };
  load(0, dots);
  for (int split = 1; split < partials.splits; split += kSplits) {
    float partial[kSplits][kCount] = {};
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
      if (split + s < partials.splits) load(split + s, partial[s]);
    }
#pragma unroll
    for (int s = 0; s < kSplits; ++s) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) dots[i] += partial[s][i];
    }
  }
}

// Loads the scales of a slab's slots, of empty ones too, so that they do not wait for the ids.
template <int kCount>
MICROSPEC_DEVICE void load_slab_scales(const HeadArgs& args, int group, int first, int step,
                                       float (&scales)[kCount]) {
  const int capacity = static_cast<int>(args.capacity);
  const float* source = args.weight_scale + group * args.capacity + first;
#pragma unroll
  for (int i = 0; i < kCount; ++i) scales[i] = first + i * step < capacity ? source[i * step] : 1.0f;
}

// Loads the scales of tokens.
template <int kCount>
MICROSPEC_DEVICE void load_token_scales(const HeadArgs& args, const int32_t (&ids)[kCount],
                                        float (&scales)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) scales[i] = ids[i] >= 0 ? args.weight_scale[ids[i]] : 1.0f;
}

// Loads the biases of tokens, in fp32.
template <int kCount>
MICROSPEC_DEVICE void load_biases(const HeadArgs& args, const int32_t (&ids)[kCount],
                                  float (&biases)[kCount]) {
  if (args.bias_type == DType::f32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      biases[i] = ids[i] >= 0 ? static_cast<const float*>(args.bias)[ids[i]] : 0.0f;
    }
    return;
  }
  uint32_t bits[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    bits[i] = ids[i] >= 0 ? static_cast<const uint16_t*>(args.bias)[ids[i]] : 0u;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    float values[2];
    if (args.bias_type == DType::bf16) {
      Elements<bf16_t>::unpack(bits[i], values);
    } else {
      Elements<f16_t>::unpack(bits[i], values);
    }
    biases[i] = values[0];
  }
}

// Loads the ids and computes the logits of a row's slots first, first + step, … A slot at or above K, or with
// an invalid id, gets id -1, and any logit. Two batches of loads: ids, dot products and a slab's scales; then
// biases and a weight's scales, whose addresses are the ids'.
template <int kCount>
MICROSPEC_DEVICE void load_logits(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                                  int first, int step, int32_t (&ids)[kCount], float (&logits)[kCount]) {
  const int capacity = static_cast<int>(args.capacity);
  const int32_t* source = ids_of(args, group) + first;
#pragma unroll
  for (int i = 0; i < kCount; ++i) ids[i] = first + i * step < capacity ? source[i * step] : -1;
  float scales[kCount];
  if (args.weight_scale && args.packed) load_slab_scales(args, group, first, step, scales);
  load_dots(args, partials, row, first, step, logits);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (!is_active(args, ids[i])) ids[i] = -1;
  }
  if (args.weight_scale) {
    if (!args.packed) load_token_scales(args, ids, scales);
#pragma unroll
    for (int i = 0; i < kCount; ++i) logits[i] *= scales[i];
  }
  if (args.bias) {
    float biases[kCount];
    load_biases(args, ids, biases);
#pragma unroll
    for (int i = 0; i < kCount; ++i) logits[i] += biases[i];
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) logits[i] *= args.logit_scale;
  if (args.softcap > 0.0f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) logits[i] = args.softcap * tanhf(logits[i] / args.softcap);
  }
}

// Loads a thread's orders and ids of slots first + thread, first + thread + kSelectThreads, …
template <int kCount>
MICROSPEC_DEVICE void load_orders(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                                  int first, uint32_t (&orders)[kCount], int32_t (&ids)[kCount]) {
  float logits[kCount];
  load_logits(args, partials, row, group, first + static_cast<int>(threadIdx.x), kSelectThreads, ids, logits);
#pragma unroll
  for (int i = 0; i < kCount; ++i) orders[i] = ids[i] >= 0 ? order_of(logits[i]) : 0;
}

// A row's orders and ids in registers, for K <= kCount * kSelectThreads.
template <int kCount>
class FewKeys {
 public:
  MICROSPEC_DEVICE FewKeys(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                           uint32_t*) {
    load_orders(args, partials, row, group, 0, orders_, ids_);
  }

  // Calls f(order) for each of the thread's slots.
  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) f(orders_[i]);
  }
  // Calls f(order, id) for each of the thread's slots; id() returns the token id, unless order is 0.
  template <class F>
  MICROSPEC_DEVICE void visit_ids(F&& f) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) f(orders_[i], [&] { return ids_[i]; });
  }

 private:
  uint32_t orders_[kCount];
  int32_t ids_[kCount];
};

// A row's orders in `memory` [K], for a larger K: shared memory if they fit. Each thread reads only orders
// that it wrote. Ids are loaded again where they are needed: for the few best.
class ManyKeys {
 public:
  MICROSPEC_DEVICE ManyKeys(const HeadArgs& args, const Partials& partials, int64_t row, int group,
                            uint32_t* memory)
      : orders_(memory), source_(ids_of(args, group)), count_(static_cast<int>(args.capacity)) {
    for (int first = 0; first < count_; first += kBatch * kSelectThreads) {
      uint32_t batch[kBatch];
      int32_t ids[kBatch];
      load_orders(args, partials, row, group, first, batch, ids);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int slot = first + i * kSelectThreads + static_cast<int>(threadIdx.x);
        if (slot < count_) orders_[slot] = batch[i];
      }
    }
  }

  template <class F>
  MICROSPEC_DEVICE void visit(F&& f) const {
    for (int slot = threadIdx.x; slot < count_; slot += kSelectThreads) f(orders_[slot]);
  }
  template <class F>
  MICROSPEC_DEVICE void visit_ids(F&& f) const {
    for (int slot = threadIdx.x; slot < count_; slot += kSelectThreads) {
      f(orders_[slot], [&] { return source_[slot]; });
    }
  }

 private:
  uint32_t* orders_;
  const int32_t* source_;
  int count_;
};

}  // namespace microspec
