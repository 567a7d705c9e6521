// SPDX-License-Identifier: Apache-2.0
// _emulation runs the CUDA library's runners over numpy arrays. It does not check arguments.
#include "bindings.h"
#include "cuda/error_text.h"
#include "cuda/launch.cuh"
#include "emulation/ops/head.h"
#include "emulation/ops/tree.h"
#include "emulation/ops/vocab.h"

namespace microspec::emulation {

PYBIND11_MODULE(_emulation, module) {
  bind_emulation(module);
  module.def("compiled_arch", [] {
    int arch = 0;
    check(cuda_compiled_arch(&arch), "cuda_compiled_arch");
    return arch;
  });
  module.def("error_advice",
             [](int error, int toolkit, int driver, int arch, const std::string& architectures) {
               return error_advice(error, {toolkit, driver, arch, architectures.c_str()});
             });
  bind_head(module);
  bind_vocab(module);
  bind_tree(module);
}

}  // namespace microspec::emulation
