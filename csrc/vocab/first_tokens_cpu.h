// SPDX-License-Identifier: Apache-2.0
// The order in which vocab_refill_ takes tokens, and the first tokens of it, on the CPU. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace microspec {

// What orders a token: the larger counts come first, then the smaller rank, then the smaller id.
struct TokenPlace {
  uint32_t count, total, rank, id;
};

// Counts and ranks below 0 count as 0.
inline uint32_t not_negative(int32_t value) { return static_cast<uint32_t>(std::max(value, 0)); }

// The counts and ranks that order the tokens of one group.
struct TokenOrder {
  const int32_t* counts;  // [V], of the group's list
  const int32_t* totals;  // [V], or null: all zero
  const int32_t* ranks;   // [V]
  int64_t vocab_size;

  TokenPlace place(int64_t token) const {
    const uint32_t total = totals ? not_negative(totals[token]) : 0;
    return {not_negative(counts[token]), total, not_negative(ranks[token]), static_cast<uint32_t>(token)};
  }
};

// Returns the first `count` tokens, at most V, in order.
std::vector<int32_t> first_tokens(const TokenOrder& order, int64_t count);

}  // namespace microspec
