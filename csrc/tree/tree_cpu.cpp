// SPDX-License-Identifier: Apache-2.0
// The tree ops on the CPU, one text after the other on each thread.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "common/parallel.h"
#include "tree/tree.h"

namespace microspec {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Texts that a thread takes at a time: a tree of 60 nodes takes a few microseconds, as waking a thread does.
constexpr int64_t kGrain = 4;

template <class Body>
void for_each_text(int64_t texts, const Body& body) {
  parallel_for(texts, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t text = begin; text < end; ++text) body(text);
  });
}

// Sorts the `count` smallest of `total` costs to the front, equal ones by their index. Returns the indices.
std::vector<int64_t> cheapest(const float* costs, int64_t total, int64_t count) {
  std::vector<int64_t> order(total);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
    return costs[a] < costs[b] || (costs[a] == costs[b] && a < b);
  });
  return order;
}

void grow_text(const TreeGrowArgs& args, int64_t text) {
  const int64_t offset = text * args.pool.places, candidates = args.candidates();
  float* const costs = args.pool.costs + offset + args.begin;
  const int64_t* const token_ids = args.token_ids + text * candidates;
  for (int64_t row = 0; row < args.frontier_width; ++row) {
    int64_t parent = -1;
    float before = 0;
    if (args.frontier) {
      parent = args.frontier[text * args.frontier_width + row];
      if (parent < 0 || parent >= args.begin) parent = -1;
      before = parent < 0 ? kInfinity : args.pool.costs[offset + parent];
    }
    const int64_t of_all = text * args.frontier_width + row;
    for (int64_t answer = 0; answer < args.answers; ++answer) {
      const int64_t i = row * args.answers + answer;
      // Rounding must not lower a path's cost, or a node would outrank its parent.
      const float step = args.logsumexp[of_all] - args.logits[of_all * args.answers + answer];
      const float cost = before + (step < 0 ? 0 : step);
      costs[i] = cost == cost ? cost : kInfinity;
      args.pool.tokens[offset + args.begin + i] = token_ids[i];
      args.pool.parents[offset + args.begin + i] = parent;
    }
  }
  const std::vector<int64_t> order = cheapest(costs, candidates, args.width);
  for (int64_t i = 0; i < args.width; ++i) {
    const int64_t next = text * args.width + i;
    args.next[next] = args.begin + order[i];
    args.next_tokens[next] = token_ids[order[i]];
    args.next_rows[next] = order[i] / args.answers;
  }
}

void cut_text(const TreeCutArgs& args, int64_t text) {
  const int64_t offset = text * args.pool.places, nodes = args.nodes;
  const float* const costs = args.pool.costs + offset;
  std::vector<float> known(costs, costs + args.pool.places);
  for (float& cost : known) cost = cost == cost ? cost : kInfinity;
  std::vector<int64_t> chosen = cheapest(known.data(), args.pool.places, nodes - 1);
  chosen.resize(nodes - 1);
  std::sort(chosen.begin(), chosen.end());
  int64_t* const tokens = args.tokens + text * nodes;
  int64_t* const parents = args.parents + text * nodes;
  int64_t* const depths = args.depths + text * nodes;
  bool* const mask = args.ancestor_mask + text * nodes * nodes;
  std::memset(mask, 0, nodes * nodes * sizeof(bool));
  tokens[0] = args.roots[text];
  parents[0] = depths[0] = 0;
  mask[0] = true;
  std::vector<int64_t> node_of(args.pool.places, 0);  // the root for places that are not chosen
  int64_t node = 1;
  for (const int64_t place : chosen) {
    if (known[place] == kInfinity) continue;
    const int64_t parent = args.pool.parents[offset + place];
    tokens[node] = args.pool.tokens[offset + place];
    parents[node] = parent >= 0 && parent < place ? node_of[parent] : 0;
    node_of[place] = node++;
  }
  std::fill(tokens + node, tokens + nodes, -1);
  std::fill(parents + node, parents + nodes, 0);
  for (node = 1; node < nodes; ++node) {
    const int64_t parent = parents[node];
    depths[node] = depths[parent] + 1;
    std::copy_n(mask + parent * nodes, node, mask + node * nodes);
    mask[node * nodes + node] = true;
  }
}

void accept_text(const TreeAcceptArgs& args, int64_t text) {
  const int64_t offset = text * args.nodes;
  const int64_t* const parents = args.parents + offset;
  const int64_t* const chosen = args.chosen + offset;
  std::vector<int64_t> depths(args.nodes, -1);  // of accepted nodes
  depths[0] = 0;
  int64_t leaf = 0;
  for (int64_t node = 1; node < args.nodes; ++node) {
    const int64_t parent = parents[node];
    if (parent < 0 || parent >= node || depths[parent] < 0 || depths[parent] >= args.depth) continue;
    if (args.tokens[offset + node] != chosen[parent]) continue;
    depths[node] = depths[parent] + 1;
    if (depths[node] > depths[leaf]) leaf = node;
  }
  int64_t* const paths = args.paths + text * args.length;
  int64_t* const path_tokens = args.path_tokens + text * args.length;
  int64_t* const node_tokens = args.node_tokens + offset;
  const int64_t count = depths[leaf] + 1;
  args.leaves[text] = leaf;
  args.counts[text] = count;
  std::fill(paths + count, paths + args.length, 0);
  std::fill(path_tokens + count, path_tokens + args.length, -1);
  std::fill_n(node_tokens, args.nodes, -1);
  int64_t node = leaf;
  for (int64_t i = count - 1; i >= 0; --i, node = parents[node]) {
    paths[i] = node;
    path_tokens[i] = node_tokens[node] = chosen[node];
  }
}

}  // namespace

void tree_grow_cpu(const TreeGrowArgs& args) {
  for_each_text(args.pool.texts, [&](int64_t text) { grow_text(args, text); });
}

void tree_cut_cpu(const TreeCutArgs& args) {
  for_each_text(args.pool.texts, [&](int64_t text) { cut_text(args, text); });
}

void tree_accept_cpu(const TreeAcceptArgs& args) {
  for_each_text(args.texts, [&](int64_t text) { accept_text(args, text); });
}

}  // namespace microspec
