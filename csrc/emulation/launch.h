// SPDX-License-Identifier: Apache-2.0
// launch() of cuda/launch.cuh on the host. It returns when the kernel is over, or throws a Failure.
#pragma once

#include "runtime.h"

namespace microspec::emulation {

// Whether the device and the kernel's own thread bound allow the launch.
bool can_launch(const void* kernel, const Launch& how);

}  // namespace microspec::emulation

namespace microspec {

template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), const Launch& how, Arguments... arguments) {
  if (!emulation::can_launch(reinterpret_cast<const void*>(kernel), how)) return kInvalidValue;
  const auto call = [&] { kernel(static_cast<Parameters>(arguments)...); };
  const auto invoke = [](const void* made) { (*static_cast<decltype(&call)>(made))(); };
  emulation::run({invoke, &call, how.blocks, how.threads, how.shared_bytes, how.dependent});
  return 0;
}

}  // namespace microspec
