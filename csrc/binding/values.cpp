// SPDX-License-Identifier: Apache-2.0
#include "values.h"

#include <algorithm>
#include <limits>
#include <string>

#include "common/clones.h"
#include "common/integers.h"

namespace microspec {

namespace {

// Whether all values are in [-1, limit). One vectorised sweep.
MICROSPEC_CLONES bool all_below(const int32_t* values, int64_t count, int64_t limit) {
  const auto bound = static_cast<int32_t>(std::min<int64_t>(limit, std::numeric_limits<int32_t>::max()));
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= (values[i] < -1) | (values[i] >= bound);
  return !bad;
}

MICROSPEC_CLONES bool all_below(const int64_t* values, int64_t count, int64_t limit) {
  int64_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= (values[i] < -1) | (values[i] >= limit);
  return !bad;
}

}  // namespace

void check_values(const Checker& check, const DeviceCall& call, const Tensor& values, int64_t bound,
                  const char* argument, const char* what, const char* where) {
  const HostValues host(call, values);
  if (!host.known()) return;
  const bool is_long = values.scalar_type() == ScalarType::Long;
  const int64_t count = values.numel();
  if (is_long ? all_below(host.data<int64_t>(), count, bound)
              : all_below(host.data<int32_t>(), count, bound)) {
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = value_at(host.data<void>(), is_long, i);
    if (value < -1 || value >= bound) fail_value(check, value, i, bound, argument, what, where);
  }
}

void fail_value(const Checker& check, int64_t value, int64_t position, int64_t bound, const char* argument,
                const char* what, const char* where) {
  check.fail("IndexError", argument, std::string(what) + " in [0, " + std::to_string(bound) + ") or -1",
             value, " at ", where, " ", position);
}

}  // namespace microspec
