// SPDX-License-Identifier: Apache-2.0
// What a user can do about an error of the CUDA runtime that comes from the installation.
#pragma once

#include <string>

namespace microspec {

struct Installation {
  int toolkit;                // of the build, as CUDART_VERSION: 12080
  int driver;                 // the CUDA version of the driver, alike; 0: there is none
  int arch;                   // the GPU's compute capability times 10; 0: not known
  const char* architectures;  // that the library was compiled for: "80-real 120"
};

// Returns sentences that follow the error's own text, or nothing for an error of another kind.
inline std::string error_advice(int error, const Installation& here) {
  constexpr int kInsufficientDriver = 35, kNoKernelImage = 209, kUnsupportedPtxVersion = 222;
  const auto dotted = [](int major, int minor) {
    return std::to_string(major) + "." + std::to_string(minor);
  };
  const auto cuda = [&](int version) { return "CUDA " + dotted(version / 1000, version % 1000 / 10); };
  const std::string gpu = "this GPU, of compute capability " + dotted(here.arch / 10, here.arch % 10);
  const std::string driver = here.driver ? "this driver supports " + cuda(here.driver) : "there is no driver";
  const std::string or_triton = ", or set MICROSPEC_BACKEND=triton";
  const int major = here.toolkit / 1000;
  switch (error) {
    case kInsufficientDriver: {
      // The oldest driver by the toolkit's major version (docs/release.md).
      const std::string needed = major == 12   ? "NVIDIA driver 525 or later"
                                 : major == 13 ? "NVIDIA driver 580 or later"
                                               : "a driver for CUDA " + dotted(major, 0) + " or later";
      return ". The library was built with " + cuda(here.toolkit) + ", which needs " + needed + ", and " +
             driver + ". Update the driver, build the library with an older CUDA (docs/release.md)" +
             or_triton;
    }
    case kNoKernelImage:
      return ". The library has code for " + std::string(here.architectures) + ", and none for " + gpu +
             ". Build it with CMAKE_ARGS=-DMICROSPEC_CUDA_ARCHITECTURES=" + std::to_string(here.arch) +
             "-real" + or_triton;
    case kUnsupportedPtxVersion:
      return ". The library has only PTX for " + gpu + ", which a driver for " + cuda(here.toolkit) +
             " or later compiles, and " + driver + ". Update the driver" + or_triton;
    default: return "";
  }
}

}  // namespace microspec
