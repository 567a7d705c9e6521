// SPDX-License-Identifier: Apache-2.0
// Reads tensors of int32 or int64.
#pragma once

#include <cstdint>

namespace microspec {

// constexpr, so that a GPU can call it too.
constexpr int64_t value_at(const void* data, bool is_long, int64_t i) {
  return is_long ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
}

}  // namespace microspec
