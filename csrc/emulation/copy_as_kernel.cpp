// SPDX-License-Identifier: Apache-2.0
// The only file of the emulation that sanitizers instrument as they do kernels.
#include "async.h"

namespace microspec::emulation {

void copy_as_kernel(void* to, const void* from, uint32_t bytes) {
  auto* target = static_cast<uint32_t*>(to);
  const auto* source = static_cast<const uint32_t*>(from);
  for (uint32_t i = 0; i < bytes / sizeof(uint32_t); ++i) target[i] = source[i];
}

}  // namespace microspec::emulation
