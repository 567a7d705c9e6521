// SPDX-License-Identifier: Apache-2.0
#include "atomics.h"

#include "races.h"

namespace microspec::emulation {

void begin_atomic(const void* address, size_t bytes, const Site& site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) fail(Kind::misaligned, "an atomic's address", site);
  maybe_yield();
  races::before_atomic(*current, address);
}

void end_atomic(const void* address) { races::after_atomic(*current, address); }

void fence_of_current() {
  races::fence(*current);
  maybe_yield();
}

}  // namespace microspec::emulation
