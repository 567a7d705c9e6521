// SPDX-License-Identifier: Apache-2.0
// vocab_update_: the active vocabulary as an exact LRU cache.
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

// The update of one group. Torch-free. Equals the sequential LRU of the contract in set and recency. The
// state may be nonsense: nothing outside its arrays is read or written then, and a token that comes
// enters if there is room.
class VocabUpdate {
 public:
  explicit VocabUpdate(const VocabGroup& group);

  // Whether older tokens change nothing any more.
  bool full() const { return distinct_ >= room_; }
  // A token in [0, V) at its position in the call, newest first, unless the update is full.
  void see(int64_t token, int64_t position);
  // Gives the newcomers their slots, once all tokens were seen.
  void seat();

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
