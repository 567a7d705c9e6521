// SPDX-License-Identifier: Apache-2.0
// VocabArgs is one call of vocab_update_ as raw pointers, as the CUDA kernel sees it. Torch-free.
#pragma once

#include <cstdint>
#include <limits>

namespace microspec {

// A pinned slot has the largest stamp, an empty slot the smallest. So the n slots for n newcomers are always
// the n smallest by (stamp, slot). A pinned slot without a token is closed: it stays empty.
constexpr int64_t kPinnedStamp = std::numeric_limits<int64_t>::max();
constexpr int64_t kEmptyStamp = -1;

// Adds a clock and a position, wrapping around: a caller's state may hold any number.
constexpr int64_t wrapping_add(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

// One checked call.
struct VocabArgs {
  int32_t* active_ids;       // [G, K], -1 is an empty slot
  int64_t* slot_stamps;      // [G, K]
  int32_t* token_slots;      // [G, V], -1 absent
  int64_t* clock;            // [G]
  const void* tokens;        // [G, N], or [N] beside token_groups; -1 is padding
  const void* token_groups;  // [N]; null: tokens are [G, N]
  bool long_tokens;          // int64 rather than int32
  bool long_groups;
  int64_t groups;      // G
  int64_t capacity;    // K
  int64_t vocab_size;  // V
  int64_t count;       // N
};

}  // namespace microspec
