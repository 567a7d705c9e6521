// SPDX-License-Identifier: Apache-2.0
// What one token of a text adds to the tables, on a GPU.
//
// atomicOr on the token's word of `seen` tells the one thread that sets the bit, and that thread counts.
// Integer sums do not depend on the order of the threads, so the result is exact and the same bits run to
// run.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "cuda/platform.cuh"
#include "vocab/learn_args.h"

namespace microspec {

namespace vocab_count {

constexpr int kThreads = 256;
// Blocks that fill an SM of 1536 threads. A longer batch walks over the grid.
constexpr int kResident = 6;

// Unsigned, so that a sum wraps around: a caller's counts may hold any number.
MICROSPEC_DEVICE unsigned* word_at(int32_t* table, int64_t i) {
  return reinterpret_cast<unsigned*>(table + i);
}

// Counts a token in [0, V), unless the request's text has shown it.
MICROSPEC_DEVICE void count_token(const CountTables& tables, int64_t request, int64_t token) {
  if (request < 0 || request >= tables.requests) return;
  const int64_t list = tables.request_lists ? value_at(tables.request_lists, tables.long_lists, request) : 0;
  if (list < 0 || list >= tables.lists) return;
  const unsigned bit = 1u << token % 32;
  if (atomicOr(word_at(tables.seen, request * tables.words() + token / 32), bit) & bit) return;
  atomicAdd(word_at(tables.text_counts, list * tables.vocab_size + token), 1u);
  if (tables.total_counts) atomicAdd(word_at(tables.total_counts, token), 1u);
}

}  // namespace vocab_count

}  // namespace microspec
