// SPDX-License-Identifier: Apache-2.0
// bind_emulation adds the device's settings, and a Python exception for each kind of failure, to a module
// that runs kernels.
#pragma once

#include <pybind11/pybind11.h>

namespace microspec::emulation {

void bind_emulation(pybind11::module_& module);

}  // namespace microspec::emulation
