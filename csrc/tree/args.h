// SPDX-License-Identifier: Apache-2.0
// One call of a tree op as raw pointers, and what all its kernels must agree on. Torch-free.
//
// A pool holds the candidates of growing trees, N places a text, without the root. All tensors are
// contiguous.
#pragma once

#include <cstdint>

namespace microspec {

// A pool's most places on CUDA, where a candidate's key has 16 bits for its place.
constexpr int64_t kMostCandidatesOnCuda = int64_t{1} << 16;

struct Pool {
  int64_t texts, places;  // B, N
  int64_t* tokens;        // [B, N]
  int64_t* parents;       // [B, N], places; -1: the root
  float* costs;           // [B, N]
};

struct TreeGrowArgs {
  Pool pool;
  const int64_t* frontier;          // [B, w], places; null: w = 1, the root
  const float* logits;              // [B w, k]
  const int64_t* token_ids;         // [B w, k]
  const float* logsumexp;           // [B w]
  int64_t frontier_width, answers;  // w, k
  int64_t begin, width;             // width: of the next frontier, at most w k
  int64_t* next;                    // [B, width], places
  int64_t* next_tokens;             // [B, width]
  int64_t* next_rows;               // [B, width], indices in the frontier

  constexpr int64_t candidates() const { return frontier_width * answers; }
};

struct TreeCutArgs {
  Pool pool;
  const int64_t* roots;  // [B]
  int64_t nodes;         // n, the root included
  int64_t* tokens;       // [B, n]
  int64_t* parents;      // [B, n]
  int64_t* depths;       // [B, n]
  bool* ancestor_mask;   // [B, n, n]
};

struct TreeAcceptArgs {
  int64_t texts, nodes;    // B, n
  const int64_t* tokens;   // [B, n]
  const int64_t* parents;  // [B, n]
  const int64_t* chosen;   // [B, n]
  int64_t depth;
  int64_t length;        // m
  int64_t* paths;        // [B, m]
  int64_t* path_tokens;  // [B, m]
  int64_t* node_tokens;  // [B, n]
  int64_t* counts;       // [B]
  int64_t* leaves;       // [B]
};

}  // namespace microspec
