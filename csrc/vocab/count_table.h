// SPDX-License-Identifier: Apache-2.0
// What one token of a text adds to the tables, on the CPU.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "vocab/learn_args.h"

namespace microspec {

// Adds one, wrapping around: a caller's counts may hold any number.
inline void increment(int32_t& count) { count = static_cast<int32_t>(static_cast<uint32_t>(count) + 1); }

// Counts a token in [0, V), unless the request's text has shown it.
inline void count_token(const CountTables& tables, int64_t request, int64_t token) {
  if (request < 0 || request >= tables.requests) return;
  const int64_t list = tables.request_lists ? value_at(tables.request_lists, tables.long_lists, request) : 0;
  if (list < 0 || list >= tables.lists) return;
  int32_t& word = tables.seen[request * tables.words() + token / 32];
  const auto bit = static_cast<int32_t>(uint32_t{1} << token % 32);
  if (word & bit) return;
  word |= bit;
  increment(tables.text_counts[list * tables.vocab_size + token]);
  if (tables.total_counts) increment(tables.total_counts[token]);
}

}  // namespace microspec
