// SPDX-License-Identifier: Apache-2.0
// ObserveArgs is one call of vocab_observe_ as raw pointers, and a Tally is where it counts. Torch-free.
#pragma once

#include <cstdint>

#include "common/integers.h"
#include "vocab/learn_args.h"

namespace microspec {

// One tensor of int32 that holds all that a step counts, because each tensor of a call takes PyTorch half a
// microsecond. In this order: verdicts, int64 [2, R]; with lists, request_lists [R], seen [R, W], text_counts
// [C, V] and, if C > 1, total_counts [V].
struct Tally {
  int64_t* verdicts;   // [2, R]: written tokens that were active, and that were not; or null
  CountTables tables;  // no lists: nothing is counted
};

constexpr int kVerdictWords = 4;  // of a request

// Returns the words of a tally that each request has, and those of its tables.
constexpr int64_t request_words(int64_t lists, int64_t vocab_size) {
  return kVerdictWords + (lists ? 1 + CountTables::words_of(vocab_size) : 0);
}
constexpr int64_t table_words(int64_t lists, int64_t vocab_size) {
  return (lists + (lists > 1)) * vocab_size;
}

inline Tally tally_at(int32_t* data, int64_t requests, int64_t lists, int64_t vocab_size) {
  Tally tally{reinterpret_cast<int64_t*>(data), {}};
  CountTables& tables = tally.tables;
  tables.requests = requests;
  tables.lists = lists;
  tables.vocab_size = vocab_size;
  if (lists == 0) return tally;
  int32_t* request_lists = data + kVerdictWords * requests;
  tables.request_lists = request_lists;
  tables.seen = request_lists + requests;
  tables.text_counts = tables.seen + requests * tables.words();
  if (lists > 1) tables.total_counts = tables.text_counts + lists * vocab_size;
  return tally;
}

// The tokens of a step: candidates, and after them those that the target wrote.
struct StepTokens {
  const void* candidates;     // [M], or null
  const void* tokens;         // [B, n] or [N]; -1 is padding
  const void* lengths;        // [B], how many of each row of tokens are valid; null: all
  const int32_t* token_rows;  // [T], each token's id in the vocabulary; null: its own
  bool long_candidates;       // int64 rather than int32
  bool long_tokens;
  bool long_lengths;
  int64_t num_candidates;  // M
  int64_t num_tokens;      // N
  int64_t row_length;      // n
  int64_t bound;           // T, or V without token_rows: tokens are in [0, bound)
  int64_t vocab_size;      // V

  constexpr int64_t count() const { return num_candidates + num_tokens; }
  // Whether the tokens are ids as they lie.
  constexpr bool plain() const { return !candidates && !lengths && !token_rows; }

  // Returns a token's id in the vocabulary, or -1.
  constexpr int64_t id_of(int64_t token) const {
    if (token < 0 || token >= bound) return -1;
    const int64_t id = token_rows ? token_rows[token] : token;
    return id >= 0 && id < vocab_size ? id : -1;
  }
  // Returns whether the i-th token that the target wrote is valid.
  constexpr bool valid(int64_t i) const {
    return !lengths || i % row_length < value_at(lengths, long_lengths, i / row_length);
  }
  // Returns the id at a position among all tokens, or -1.
  constexpr int64_t id_at(int64_t i) const {
    if (i < num_candidates) return id_of(value_at(candidates, long_candidates, i));
    const int64_t written = i - num_candidates;
    return valid(written) ? id_of(value_at(tokens, long_tokens, written)) : -1;
  }
};

// One checked call, beside the update.
struct ObserveArgs {
  StepTokens tokens;
  Tally tally;
  int32_t* ids;                // [M + N], to write the ids to; null: tokens are ids as they lie
  const int32_t* active_ids;   // [G, K]
  const int32_t* token_slots;  // [G, V]
  const void* token_groups;    // [M + N], or null if G = 1; others outside [0, G) are ignored
  const void* token_requests;  // [M + N], or null: the group if R = G, else 0; others outside [0, R) too
  bool long_groups;            // int64 rather than int32
  bool long_requests;
  int64_t groups;    // G
  int64_t capacity;  // K

  constexpr bool nothing_to_do() const { return tokens.plain() && !tally.verdicts; }
  constexpr int64_t group_at(int64_t i) const {
    return token_groups ? value_at(token_groups, long_groups, i) : 0;
  }
  constexpr int64_t request_at(int64_t i) const {
    if (token_requests) return value_at(token_requests, long_requests, i);
    return tally.tables.requests == groups ? group_at(i) : 0;
  }
  constexpr bool is_active(int64_t group, int64_t id) const {
    const int32_t slot = token_slots[group * tokens.vocab_size + id];
    return slot >= 0 && slot < capacity && active_ids[group * capacity + slot] == id;
  }
};

}  // namespace microspec
