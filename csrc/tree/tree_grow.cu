// SPDX-License-Identifier: Apache-2.0
// tree_grow_kernel adds a level to the pool of a text, one block a text.
//
//   1. A thread computes a candidate's cost and writes the candidate to the pool.
//   2. With more than kListed candidates, find the cost of the last of the next frontier (tree_select.cuh).
//      List the keys of those that may be in it: of few candidates, all.
//   3. A candidate's rank is the number of larger keys in the list. Write the candidate at its rank.
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "tree/tree_cuda.h"
#include "tree/tree_launch.cuh"
#include "tree/tree_select.cuh"

namespace microspec {

namespace tree {

// To rank L listed candidates takes L steps of a thread, of four instructions each. To select first takes
// some ten steps of a barrier, which as many steps as these outlast.
constexpr int kListed = 256;

struct GrowState {
  BestScratch best;
  unsigned listed;
  uint64_t keys[kListed];
  int64_t order[kListed];
};

// Writes candidate i of the text to its pool, and returns its cost.
MICROSPEC_DEVICE float write_candidate(const TreeGrowArgs& args, int64_t text, int i) {
  const auto answers = static_cast<int>(args.answers);
  const int64_t row = text * args.frontier_width + i / answers;
  const int64_t answer = text * args.candidates() + i;
  const int64_t pool = text * args.pool.places;
  const int64_t token = args.token_ids[answer];
  const float logit = args.logits[answer], logsumexp = args.logsumexp[row];
  int64_t parent = -1;
  float before = 0;
  if (args.frontier) {
    parent = args.frontier[row];
    // Other threads write the places from `begin` on.
    if (parent < 0 || parent >= args.begin) parent = -1;
    before = parent < 0 ? infinity() : args.pool.costs[pool + parent];
  }
  const float step = __fsub_rn(logsumexp, logit);
  const float sum = __fadd_rn(before, step < 0 ? 0 : step);
  const float cost = sum == sum ? sum : infinity();
  const int64_t place = pool + args.begin + i;
  args.pool.tokens[place] = token;
  args.pool.parents[place] = parent;
  args.pool.costs[place] = cost;
  return cost;
}

MICROSPEC_KERNEL(kThreads, 1)
tree_grow_kernel(TreeGrowArgs args) {
  MICROSPEC_SHARED(GrowState, storage, 1);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  GrowState& state = storage[0];
  const int64_t text = blockIdx.x;
  const auto count = static_cast<int>(args.candidates());
  const auto width = static_cast<int>(args.width);
  if (threadIdx.x == 0) state.listed = 0;

  Keys<false> keys{args.pool.costs + text * args.pool.places + args.begin, count, 0};
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const float cost = write_candidate(args, text, i);
    if (i == static_cast<int>(threadIdx.x)) keys.first = key_of(cost, i);
  }

  const bool lists_all = count <= max(kListed, width);
  const uint64_t last = lists_all ? 1 : best_of(keys, args.width, state.best);
  const int listed = lists_all ? count : width;
  // A long list takes the place of results that are written after it has been read.
  const bool is_short = listed <= kListed;
  uint64_t* const list = is_short ? state.keys : reinterpret_cast<uint64_t*>(args.next + text * width);
  int64_t* const order = is_short ? state.order : args.next_rows + text * width;
  __syncthreads();
  keys.visit([&](uint64_t key) {
    if (key >= last) list[atomicAdd(&state.listed, 1u)] = key;
  });
  __syncthreads();
  for (int i = threadIdx.x; i < listed; i += blockDim.x) {
    const uint64_t key = list[i];
    int rank = 0;
#pragma unroll 8
    for (int other = 0; other < listed; ++other) rank += list[other] > key;
    if (rank < width) order[rank] = index_of(key);
  }
  __syncthreads();
  for (int rank = threadIdx.x; rank < width; rank += blockDim.x) {
    const auto i = static_cast<int>(order[rank]);
    const int64_t result = text * width + rank;
    args.next[result] = args.begin + i;
    args.next_tokens[result] = args.token_ids[text * count + i];
    args.next_rows[result] = i / static_cast<int>(args.answers);
  }
}

}  // namespace tree

int run_tree_grow_cuda(const TreeGrowArgs& args, void* stream) {
  if (args.pool.texts > kMostOnCuda || args.candidates() > kMostCandidatesOnCuda) return kInvalidValue;
  return tree::run(tree::tree_grow_kernel, args, args.pool.texts, args.candidates(), 0, stream);
}

}  // namespace microspec
