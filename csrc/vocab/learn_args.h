// SPDX-License-Identifier: Apache-2.0
// CountArgs and RefillArgs are one call of vocab_count_ and of vocab_refill_ as raw pointers. Torch-free.
#pragma once

#include <cstdint>

namespace microspec {

// In how many texts each token stood, and which tokens the running texts have shown.
struct CountTables {
  int32_t* text_counts;       // [C, V]
  int32_t* total_counts;      // [V], or null
  int32_t* seen;              // [R, W]: bit t % 32 of word t / 32 stands for token t
  const void* request_lists;  // [R], or null: every request counts in list 0; others outside [0, C) do not
  bool long_lists;            // int64 rather than int32
  int64_t requests;           // R
  int64_t lists;              // C
  int64_t vocab_size;         // V

  constexpr int64_t words() const { return words_of(vocab_size); }
  // Returns W, the words of a bit for each token.
  static constexpr int64_t words_of(int64_t vocab_size) { return (vocab_size + 31) / 32; }
};

// One checked call of vocab_count_.
struct CountArgs {
  CountTables tables;
  const void* tokens;          // [R, N], or [N] beside token_requests; ids outside [0, V) are ignored
  const void* token_requests;  // [N], or null; requests outside [0, R) are ignored
  bool long_tokens;            // int64 rather than int32
  bool long_requests;
  int64_t count;  // N

  constexpr int64_t total() const { return token_requests ? count : tables.requests * count; }
};

// One checked call of vocab_refill_.
struct RefillArgs {
  int32_t* active_ids;          // [G, K], -1 is an empty slot
  int64_t* slot_stamps;         // [G, K]
  int32_t* token_slots;         // [G, V], -1 absent
  int64_t* clock;               // [G]
  const int32_t* text_counts;   // [C, V]
  const int32_t* total_counts;  // [V], or null: all zero
  const int32_t* token_ranks;   // [V], the lowest first
  const void* group_lists;      // [G], the list of each group; outside [0, C): leave the group as it is
  bool long_lists;              // int64 rather than int32
  bool reset;                   // whether the slots that are not pinned begin anew too
  int64_t groups;               // G
  int64_t capacity;             // K
  int64_t vocab_size;           // V
  int64_t lists;                // C
  int64_t pinned;               // tokens to pin, at most K
};

}  // namespace microspec
