// SPDX-License-Identifier: Apache-2.0
// The checks of a vocabulary's state, which vocab_update_ and vocab_refill_ share.
#pragma once

#include <cstdint>

#include "binding/check.h"
#include "binding/device_call.h"

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

}  // namespace microspec
