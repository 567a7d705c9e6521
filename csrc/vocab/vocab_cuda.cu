// SPDX-License-Identifier: Apache-2.0
// vocab_update_ on CUDA: the launch's grid and memory, and the choice among the kernel's sizes.
#include <algorithm>

#include "cuda/runtime.h"
#include "vocab/narrow_kernel.cuh"
#include "vocab/vocab_cuda.h"
#include "vocab/vocab_kernel.cuh"

namespace microspec {

namespace {

using vocab::kThreads;

// Slots that a thread can keep in registers: two words each, of the 128 registers of a thread in a block of
// 512.
constexpr int kMostSlots = 32;

// Bytes of groups that all blocks together must save for narrow_groups_kernel to pay. At 5.3 TB/s from L2
// these are 3 us, and the kernel takes about 2: it starts, and waits for memory once.
#ifndef MICROSPEC_NARROW_FROM
#define MICROSPEC_NARROW_FROM (16 << 20)
#endif

// Sizes: 1024, 3072 (the usual capacity), 8192 and 16384. Spare registers cost only the instructions for
// slots that do not exist.
decltype(VocabPlan::kernel) kernel_for(int64_t capacity) {
  if (capacity <= 2 * kThreads) return vocab::vocab_update_kernel<2>;
  if (capacity <= 6 * kThreads) return vocab::vocab_update_kernel<6>;
  if (capacity <= 16 * kThreads) return vocab::vocab_update_kernel<16>;
  return vocab::vocab_update_kernel<kMostSlots>;
}

// Rounds up, so that the array that follows is aligned.
size_t aligned(int64_t bytes) { return ceil_div<size_t>(bytes, 256) * 256; }

int bytes_of_groups(const VocabArgs& args) { return args.long_groups ? sizeof(int64_t) : sizeof(int32_t); }

bool narrows(const VocabArgs& args) {
  if (!args.token_groups || args.groups > vocab::kNoGroup) return false;
  const int64_t saved = bytes_of_groups(args) - static_cast<int>(sizeof(uint16_t));
  return args.groups * args.count * saved >= MICROSPEC_NARROW_FROM;
}

}  // namespace

int plan_vocab_cuda(const VocabArgs& args, VocabPlan* plan) {
  *plan = VocabPlan{};
  vocab::Layout& layout = plan->layout;
  layout.newcomers = ceil_div<int64_t>(args.capacity, 2) * 2;
  layout.queue = layout.newcomers + 2 * std::min(args.capacity, args.count);
  layout.words = layout.queue + (args.token_groups ? vocab::kQueue : 0);
  plan->kernel = kernel_for(args.capacity);
  Loaded loaded;
  if (const Error error = load(plan->kernel, loaded)) return error;
  plan->in_shared = args.capacity <= kMostSlots * kThreads && layout.words * 4 <= loaded.dynamic_shared;
  if (!plan->in_shared) {
    plan->kernel = vocab::vocab_update_kernel<0>;
    plan->layout_bytes = aligned(layout.words * 4 * args.groups);
  }
  if (narrows(args)) plan->narrow_bytes = aligned(args.count * sizeof(uint16_t));
  return cudaSuccess;
}

int run_vocab_update_cuda(const VocabArgs& args, const VocabPlan& plan, void* workspace, void* stream) {
  if (std::max({args.count, args.capacity, args.groups}) > kMostOnCuda) return kInvalidValue;
  if (args.groups == 0 || args.count == 0) return cudaSuccess;
  vocab::TokenGroups groups{args.token_groups, bytes_of_groups(args)};
  if (plan.narrow_bytes) {
    auto* narrow = reinterpret_cast<uint16_t*>(static_cast<char*>(workspace) + plan.layout_bytes);
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(args.count, vocab::kNarrowThreads));
    const Launch how{blocks, vocab::kNarrowThreads, 0, stream, true};
    if (const Error error = launch(vocab::narrow_groups_kernel, how, args, narrow)) return error;
    groups = {narrow, sizeof(uint16_t)};
  }
  const size_t shared_bytes = plan.in_shared ? plan.layout.words * 4 : 0;
  const Launch how{static_cast<unsigned>(args.groups), kThreads, shared_bytes, stream, true};
  return launch(plan.kernel, how, args, groups, plan.layout, static_cast<int32_t*>(workspace));
}

}  // namespace microspec
