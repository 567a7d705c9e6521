// SPDX-License-Identifier: Apache-2.0
// vocab_update_ on CUDA: the launch's grid and memory, and the choice among the kernel's sizes.
#include <algorithm>

#include "cuda/runtime.h"
#include "vocab/vocab_cuda.h"
#include "vocab/vocab_kernel.cuh"

namespace microspec {

namespace {

using vocab::kThreads;

// Slots that a thread can keep in registers: two words each, of the 128 registers of a thread in a block of
// 512.
constexpr int kMostSlots = 32;

using Kernel = void (*)(VocabArgs, vocab::Layout, int32_t*);

// Sizes: 1024, 3072 (the usual capacity), 8192 and 16384. Spare registers cost only the instructions for
// slots that do not exist.
Kernel kernel_for(int64_t capacity) {
  if (capacity <= 2 * kThreads) return vocab::vocab_update_kernel<2>;
  if (capacity <= 6 * kThreads) return vocab::vocab_update_kernel<6>;
  if (capacity <= 16 * kThreads) return vocab::vocab_update_kernel<16>;
  return vocab::vocab_update_kernel<kMostSlots>;
}

// The call's kernel, and where it keeps the arrays that grow with the call.
struct VocabPlan {
  Kernel kernel;
  vocab::Layout layout;
  bool in_shared;  // the layout is in shared memory; else in the workspace, group by group
};

// Chooses the kernel, and lays out the arrays: in shared memory if they fit.
Error plan_of(const VocabArgs& args, VocabPlan& plan) {
  plan.layout.newcomers = ceil_div<int64_t>(args.capacity, 2) * 2;
  plan.layout.queue = plan.layout.newcomers + 2 * std::min(args.capacity, args.count);
  plan.layout.words = plan.layout.queue + (args.token_groups ? vocab::kQueue : 0);
  plan.kernel = kernel_for(args.capacity);
  Loaded loaded;
  if (const Error error = load(plan.kernel, loaded)) return error;
  plan.in_shared = args.capacity <= kMostSlots * kThreads && plan.layout.words * 4 <= loaded.dynamic_shared;
  if (!plan.in_shared) plan.kernel = vocab::vocab_update_kernel<0>;
  return cudaSuccess;
}

}  // namespace

int vocab_cuda_workspace(const VocabArgs& args, size_t* bytes) {
  VocabPlan plan;
  if (const Error error = plan_of(args, plan)) return error;
  *bytes = plan.in_shared ? 0 : ceil_div<size_t>(plan.layout.words * 4 * args.groups, 256) * 256;
  return cudaSuccess;
}

int run_vocab_update_cuda(const VocabArgs& args, void* workspace, void* stream) {
  if (std::max({args.count, args.capacity, args.groups}) > kMostOnCuda) return kInvalidValue;
  if (args.groups == 0 || args.count == 0) return cudaSuccess;
  VocabPlan plan;
  if (const Error error = plan_of(args, plan)) return error;
  const size_t shared_bytes = plan.in_shared ? plan.layout.words * 4 : 0;
  const Launch how{static_cast<unsigned>(args.groups), kThreads, shared_bytes, stream, true};
  return launch(plan.kernel, how, args, plan.layout, static_cast<int32_t*>(workspace));
}

}  // namespace microspec
