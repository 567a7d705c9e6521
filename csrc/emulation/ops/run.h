// SPDX-License-Identifier: Apache-2.0
// What the bindings of all ops of _emulation need.
#pragma once

#include "emulation/arrays.h"

namespace microspec::emulation {

// Makes a call that launches kernels, so that other Python threads can make theirs meanwhile.
template <class Call>
void run(const char* op, Call&& call) {
  const int error = [&] {
    const py::gil_scoped_release released;
    return call();
  }();
  check(error, op);
}

}  // namespace microspec::emulation
