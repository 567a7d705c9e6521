// SPDX-License-Identifier: Apache-2.0
// tree_cut_kernel makes the tree of a text out of its pool, one block a text.
//
//   1. Find the key of the last candidate that is chosen (tree_select.cuh). Meanwhile clear the mask.
//   2. Ballots mark the chosen ones in a bitmap, and running sums over its words number them in the pool's
//      order: nodes 1, 2, ..
//   3. Each chosen candidate writes its node. A node's parent comes before it, whatever the pool holds.
//   4. A thread a node walks to the root, and sets its ancestors in the mask.
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "cuda/runtime.h"
#include "tree/tree_cuda.h"
#include "tree/tree_launch.cuh"
#include "tree/tree_select.cuh"

namespace microspec {

namespace tree {

// The most nodes whose parents a block keeps in shared memory, 16 KB. It reads others in `parents`, where a
// step takes the L1 cache's latency.
constexpr int64_t kMostLinked = 2048;

inline size_t cut_shared_bytes(const TreeCutArgs& args) {
  const int64_t words = ceil_div<int64_t>(args.pool.places, kWarp);
  return (args.nodes <= kMostLinked ? args.nodes : 0) * sizeof(int64_t) + 2 * words * sizeof(uint32_t);
}

// A set of places, and how many of its members each word's bits come after.
struct Chosen {
  uint32_t* words;
  uint32_t* before;
  int places;

  MICROSPEC_DEVICE int num_words() const { return (places + kWarp - 1) / kWarp; }
  MICROSPEC_DEVICE bool has(int place) const { return words[place / kWarp] >> place % kWarp & 1; }
  // Returns the node of a member.
  MICROSPEC_DEVICE int node(int place) const {
    const uint32_t below = words[place / kWarp] & ((1u << place % kWarp) - 1);
    return static_cast<int>(before[place / kWarp]) + __popc(below) + 1;
  }

  // Fills `before` and returns the number of members. One warp calls this, after a barrier.
  MICROSPEC_DEVICE unsigned number() const {
    unsigned total = 0;
    for (int first = 0; first < num_words(); first += kWarp) {
      const int word = first + lane_index();
      const unsigned members = word < num_words() ? __popc(words[word]) : 0;
      unsigned sum = members;
#pragma unroll
      for (int distance = 1; distance < kWarp; distance *= 2) {
        const unsigned other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane_index() >= distance) sum += other;
      }
      if (word < num_words()) before[word] = total + sum - members;
      total += __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
    return total;
  }
};

// Clears bytes [count], 16 at a time where they are aligned. The whole block calls it.
MICROSPEC_DEVICE void clear(bool* bytes, int64_t count) {
  constexpr int kBytes = sizeof(uint4);
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(bytes) % kBytes);
  const int64_t begin = min(past ? kBytes - past : int64_t{0}, count);
  const int64_t vectors = (count - begin) / kBytes;
  auto* const aligned = reinterpret_cast<uint4*>(bytes + begin);
  for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) aligned[i] = uint4{0, 0, 0, 0};
  const int64_t end = begin + vectors * kBytes;
  if (threadIdx.x < begin) bytes[threadIdx.x] = false;
  if (threadIdx.x < count - end) bytes[end + threadIdx.x] = false;
}

struct CutState {
  BestScratch best;
  unsigned members;
};

MICROSPEC_KERNEL(kThreads, 1)
tree_cut_kernel(TreeCutArgs args) {
  MICROSPEC_SHARED(CutState, storage, 1);
  MICROSPEC_DYNAMIC_SHARED(dynamic);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  CutState& state = storage[0];
  const int64_t text = blockIdx.x, nodes = args.nodes;
  const auto places = static_cast<int>(args.pool.places);
  const int64_t pool = text * places;
  int64_t* const tokens = args.tokens + text * nodes;
  int64_t* const parents = args.parents + text * nodes;
  int64_t* const depths = args.depths + text * nodes;
  bool* const mask = args.ancestor_mask + text * nodes * nodes;
  const bool is_linked = nodes <= kMostLinked;
  int64_t* const links = is_linked ? reinterpret_cast<int64_t*>(dynamic) : parents;
  auto* const words = reinterpret_cast<uint32_t*>(dynamic + (is_linked ? nodes * sizeof(int64_t) : 0));
  const Chosen chosen{words, words + (places + kWarp - 1) / kWarp, places};

  // The first level of loads: all that a thread's first candidate may need.
  const int mine = threadIdx.x;
  const bool exists = mine < places;
  const float cost = exists ? args.pool.costs[pool + mine] : infinity();
  const int64_t my_token = exists ? args.pool.tokens[pool + mine] : -1;
  const int64_t my_parent = exists ? args.pool.parents[pool + mine] : -1;
  clear(mask, nodes * nodes);
  using PoolKeys = Keys<true>;
  const PoolKeys keys{args.pool.costs + pool, places, PoolKeys::key(cost, mine)};

  const uint64_t last = best_of(keys, static_cast<unsigned>(nodes - 1), state.best);
  for (int first = warp_index() * kWarp; first < places; first += blockDim.x) {
    const int place = first + lane_index();
    uint64_t key = place == mine ? keys.first : 0;
    if (place != mine && place < places) key = PoolKeys::key(keys.costs[place], place);
    const unsigned word = __ballot_sync(kAllLanes, key >= last);
    if (lane_index() == 0) chosen.words[first / kWarp] = word;
  }
  __syncthreads();
  if (warp_index() == 0) {
    const unsigned members = chosen.number();
    if (lane_index() == 0) state.members = members;
  }
  __syncthreads();

  const auto write = [&](int64_t node, int64_t token, int64_t parent) {
    tokens[node] = token;
    parents[node] = parent;
    links[node] = parent;
  };
  for (int place = mine; place < places; place += blockDim.x) {
    if (!chosen.has(place)) continue;
    const int64_t parent = place == mine ? my_parent : args.pool.parents[pool + place];
    const bool is_linked_to = parent >= 0 && parent < place && chosen.has(static_cast<int>(parent));
    write(chosen.node(place), place == mine ? my_token : args.pool.tokens[pool + place],
          is_linked_to ? chosen.node(static_cast<int>(parent)) : 0);
  }
  if (threadIdx.x == 0) write(0, args.roots[text], 0);
  for (int64_t node = 1 + state.members + threadIdx.x; node < nodes; node += blockDim.x) write(node, -1, 0);
  __syncthreads();

  for (int64_t node = threadIdx.x; node < nodes; node += blockDim.x) {
    bool* const row = mask + node * nodes;
    int64_t depth = 0;
    for (int64_t ancestor = node; ancestor > 0; ancestor = links[ancestor]) {
      row[ancestor] = true;
      ++depth;
    }
    row[0] = true;
    depths[node] = depth;
  }
}

}  // namespace tree

int run_tree_cut_cuda(const TreeCutArgs& args, void* stream) {
  if (args.pool.texts > kMostOnCuda || args.pool.places > kMostCandidatesOnCuda) return kInvalidValue;
  return tree::run(tree::tree_cut_kernel, args, args.pool.texts, args.pool.places,
                   tree::cut_shared_bytes(args), stream);
}

}  // namespace microspec
