// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch.cuh"

namespace microspec {

Error current_device(Device& device) {
  const auto& settings = emulation::settings;
  device = {settings.arch, settings.sms, settings.block_shared, settings.sm_shared};
  return 0;
}

namespace emulation {

namespace {

constexpr unsigned kMostThreads = 1024;

// Returns the number of threads that MICROSPEC_KERNEL allows, rounded up to warps. The macro leaves a
// one-byte no-operation for each warp at the kernel's entry, where compilers put none of their own.
unsigned most_threads([[maybe_unused]] const void* kernel) {
#if defined(__x86_64__)
  constexpr unsigned char kNop = 0x90;
  const auto* code = static_cast<const unsigned char*>(kernel);
  unsigned warps = 0;
  while (warps * 32 < kMostThreads && code[warps] == kNop) ++warps;
  if (warps) return warps * 32;
#endif
  return kMostThreads;
}

}  // namespace

bool can_launch(const void* kernel, const Launch& how) {
  return how.blocks > 0 && how.threads > 0 && how.threads <= most_threads(kernel) &&
         how.shared_bytes <= static_cast<size_t>(settings.block_shared);
}

}  // namespace emulation
}  // namespace microspec
