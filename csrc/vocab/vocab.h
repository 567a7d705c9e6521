// SPDX-License-Identifier: Apache-2.0
// vocab_update_ maintains the active vocabulary as an exact LRU cache.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "vocab/args.h"

namespace microspec {

// One group's state.
struct VocabGroup {
  int32_t* active_ids;    // [K]
  int64_t* slot_stamps;   // [K]
  int32_t* token_slots;   // [V], -1 absent
  int64_t* clock;         // [1]
  int64_t capacity;       // K
  int64_t vocab_size;     // V
  int64_t clock_advance;  // positions in the call, padding included
};

// The update of one group. Torch-free. The result equals the contract's sequential LRU in set and recency. If
// the state is invalid, nothing outside its arrays is read or written, and a new token still enters if there
// is room.
class VocabUpdate {
 public:
  explicit VocabUpdate(const VocabGroup& group);

  // Whether older tokens can change nothing any more.
  bool full() const { return distinct_ >= room_; }
  // Takes a token in [0, V) at its position in the call. Call it newest first, until the update is full.
  void see(int64_t token, int64_t position);
  // Gives the newcomers their slots. Call it after the last see().
  void place_newcomers();

 private:
  struct Newcomer {
    int64_t token;
    int64_t stamp;
  };

  VocabGroup group_;
  int64_t base_;  // the clock before the call
  int64_t room_;  // slots that are not pinned
  int64_t distinct_ = 0;
  std::vector<Newcomer> newcomers_;  // newest first
};

void vocab_update_(torch::stable::Tensor active_ids, torch::stable::Tensor slot_stamps,
                   torch::stable::Tensor token_slots, torch::stable::Tensor clock,
                   torch::stable::Tensor tokens, std::optional<torch::stable::Tensor> token_groups);

}  // namespace microspec
