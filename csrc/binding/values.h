// SPDX-License-Identifier: Apache-2.0
// Checks of values, where the host knows them.
#pragma once

#include <cstdint>

#include "check.h"
#include "device_call.h"

namespace microspec {

// Requires all values int32 or int64 to be in [-1, bound). Otherwise raises an IndexError that names the
// first bad one: "expected ids in [0, 50) or -1, got 60 at position 3".
void check_values(const Checker& check, const DeviceCall& call, const Tensor& values, int64_t bound,
                  const char* argument, const char* what, const char* where);
[[noreturn]] void fail_value(const Checker& check, int64_t value, int64_t position, int64_t bound,
                             const char* argument, const char* what, const char* where);

}  // namespace microspec
