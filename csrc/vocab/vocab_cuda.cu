// SPDX-License-Identifier: Apache-2.0
// vocab_update_ on CUDA: the launch's grid and memory, and the choice among the kernel's sizes.
#include <algorithm>

#include "vocab/vocab_cuda.h"
#include "vocab/vocab_kernel.cuh"

namespace microspec {

namespace {

using vocab::kThreads;

// Slots that a thread can keep in registers: two words each, of the 128 registers of a thread in a block of
// 512.
constexpr int kMostSlots = 32;

// Where the call keeps the arrays that grow with it.
struct VocabPlan {
  vocab::Layout layout;
  bool in_shared;  // the layout is in shared memory; else in the workspace, group by group
};

// Lays out the arrays: in shared memory if they fit.
Error plan_of(const VocabArgs& args, VocabPlan& plan) {
  Device device;
  if (const Error error = current_device(device)) return error;
  plan.layout.newcomers = ceil_div<int64_t>(args.capacity, 2) * 2;
  plan.layout.words = plan.layout.newcomers + 2 * std::min(args.capacity, args.count);
  const int64_t available = device.block_shared - static_cast<int64_t>(sizeof(vocab::BlockState));
  plan.in_shared = args.capacity <= kMostSlots * kThreads && plan.layout.words * 4 <= available;
  return cudaSuccess;
}

template <int slots>
Error start(const VocabArgs& args, const VocabPlan& plan, void* workspace, void* stream) {
  const size_t shared_bytes = plan.in_shared ? plan.layout.words * 4 : 0;
  const Launch how{static_cast<unsigned>(args.groups), kThreads, shared_bytes, stream, true};
  return launch(vocab::vocab_update_kernel<slots>, how, args, plan.layout, static_cast<int32_t*>(workspace));
}

}  // namespace

int vocab_cuda_workspace(const VocabArgs& args, size_t* bytes) {
  VocabPlan plan;
  if (const Error error = plan_of(args, plan)) return error;
  *bytes = plan.in_shared ? 0 : ceil_div<size_t>(plan.layout.words * 4 * args.groups, 256) * 256;
  return cudaSuccess;
}

int run_vocab_update_cuda(const VocabArgs& args, void* workspace, void* stream) {
  // Positions and slots are ints in the kernel. The limit leaves room for a tile's or a warp's slots beyond
  // the last.
  constexpr int64_t kMost = int64_t{1} << 30;
  if (std::max({args.count, args.capacity, args.groups}) > kMost) return kInvalidValue;
  if (args.groups == 0 || args.count == 0) return cudaSuccess;
  VocabPlan plan;
  if (const Error error = plan_of(args, plan)) return error;
  if (!plan.in_shared) return start<0>(args, plan, workspace, stream);
  // Sizes: 1024, 3072 (the usual capacity), 8192 and 16384. Spare registers cost only the instructions for
  // slots that do not exist.
  if (args.capacity <= 2 * kThreads) return start<2>(args, plan, workspace, stream);
  if (args.capacity <= 6 * kThreads) return start<6>(args, plan, workspace, stream);
  if (args.capacity <= 16 * kThreads) return start<16>(args, plan, workspace, stream);
  return start<kMostSlots>(args, plan, workspace, stream);
}

}  // namespace microspec
