// vocab_update_: the active vocabulary as an exact LRU cache.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "vocab/args.h"

namespace microspec {

// One group's state, and the tokens it has just seen.
struct VocabGroup {
  int32_t* active_ids;    // [K]
  int64_t* slot_stamps;   // [K]
  int32_t* token_slots;   // [V], -1 absent
  int64_t* clock;         // [1]
  int64_t capacity;       // K
  int64_t vocab_size;     // V
  const int64_t* tokens;  // [count], in [0, V), oldest first
  const int64_t* offset;  // [count]: each token's position in the call, added to the clock
  int64_t count;
  int64_t clock_advance;  // positions in the call, padding included
};

// Torch-free. Equals the sequential LRU of the contract in set and recency. The state may be nonsense:
// nothing outside these arrays is read or written then, and a token that comes enters if there is room.
void vocab_update_group(const VocabGroup& group);

void vocab_update_(torch::stable::Tensor active_ids, torch::stable::Tensor slot_stamps,
                   torch::stable::Tensor token_slots, torch::stable::Tensor clock,
                   torch::stable::Tensor tokens, std::optional<torch::stable::Tensor> token_groups);

}  // namespace microspec
