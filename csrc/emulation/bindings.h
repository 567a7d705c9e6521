// SPDX-License-Identifier: Apache-2.0
// What a module that runs kernels offers to Python besides them: the device's settings, and a Python
// exception for each kind of failure.
#pragma once

#include <pybind11/pybind11.h>

namespace microspec::emulation {

void bind_emulation(pybind11::module_& module);

}  // namespace microspec::emulation
