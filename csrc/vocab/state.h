// SPDX-License-Identifier: Apache-2.0
// The checks that the ops of a vocabulary share.
#pragma once

#include <cstdint>
#include <optional>

#include "binding/check.h"
#include "binding/device_call.h"
#include "binding/values.h"
#include "vocab/args.h"
#include "vocab/learn_args.h"

namespace microspec {

// The sizes of a vocabulary's state.
struct VocabSizes {
  int64_t groups;      // G
  int64_t capacity;    // K
  int64_t vocab_size;  // V
};

// Requires active_ids int32 [K] or [G, K], slot_stamps int64 [G, K], token_slots int32 [G, V] and clock int64
// [G], contiguous and on one device.
VocabSizes check_state(const Checker& check, const DeviceCall& call, const Tensor& active_ids,
                       const Tensor& slot_stamps, const Tensor& token_slots, const Tensor& clock);

// Requires int32 or int64 [count], contiguous and on the device. Returns true for int64.
bool check_numbers(const Checker& check, const Tensor& numbers, const char* argument, int64_t count);

// Returns an update without its tokens.
VocabArgs update_of(const VocabSizes& sizes, const Tensor& active_ids, const Tensor& slot_stamps,
                    const Tensor& token_slots, const Tensor& clock);

// Runs a checked update on its device.
void run_update(const DeviceCall& call, const VocabArgs& args);

// Requires text_counts int32 [C, V] with C >= 1, and total_counts int32 [V].
void check_counts(const Checker& check, const Tensor& text_counts, const std::optional<Tensor>& total_counts);

}  // namespace microspec
