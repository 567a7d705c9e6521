// SPDX-License-Identifier: Apache-2.0
#include "cuda_runtime.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

namespace microspec::emulation {

namespace {

constexpr cudaError_t kInvalidValue = 1, kNotSupported = 801;
constexpr unsigned kMostThreads = 1024;
// Dynamic and static bytes of a block unless cudaFuncSetAttribute has allowed more.
constexpr size_t kWithoutAsking = 48 * 1024;

std::mutex mutex;  // guards all below, and lets one launch run at a time
std::condition_variable met;
int waiting = 0;
std::vector<RuntimeCall> calls;
std::map<std::pair<const void*, int>, int> most_dynamic;  // set by cudaFuncSetAttribute
std::map<const void*, size_t> static_shared;

// Each set of properties is a device of its own, so that what a host keeps of one does not serve another.
int current_device() {
  using Properties = std::tuple<int, int, int, int, int>;
  static std::map<Properties, int> devices;
  const Properties properties{settings.arch, settings.device(), settings.sms, settings.block_shared,
                              settings.sm_shared};
  return devices.try_emplace(properties, static_cast<int>(devices.size())).first->second;
}

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

size_t allowed_dynamic(const void* kernel) {
  const auto found = most_dynamic.find({kernel, current_device()});
  if (found != most_dynamic.end()) return static_cast<size_t>(found->second);
  return kWithoutAsking - std::min(kWithoutAsking, static_shared.at(kernel));
}

// Waits until as many threads are here as the settings ask for.
void meet(std::unique_lock<std::mutex>& lock) {
  if (settings.launches_meet < 2) return;
  ++waiting;
  met.notify_all();
  const bool all = met.wait_for(lock, std::chrono::seconds(60), [] {
    return settings.launches_meet < 2 || waiting >= settings.launches_meet;
  });
  settings.launches_meet = 0;
  --waiting;
  if (!all) throw Failure(Kind::deadlock, "a launch waited for another thread's");
}

}  // namespace

std::vector<RuntimeCall> take_runtime_calls() {
  const std::lock_guard lock(mutex);
  return std::exchange(calls, {});
}

std::map<const void*, size_t> known_kernels() {
  const std::lock_guard lock(mutex);
  return static_shared;
}

int waiting_launches() {
  const std::lock_guard lock(mutex);
  return waiting;
}

cudaError_t attributes_of(const void* kernel, const Job& probe, cudaFuncAttributes* attributes) {
  const std::lock_guard lock(mutex);
  if (!static_shared.contains(kernel)) static_shared[kernel] = static_shared_of(probe);
  attributes->sharedSizeBytes = static_shared[kernel];
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(allowed_dynamic(kernel));
  attributes->ptxVersion = settings.arch / 10;
  return cudaSuccess;
}

cudaError_t run_checked(const void* kernel, const cudaLaunchConfig_t& config, void (*invoke)(const void*),
                        const void* arguments) {
  std::unique_lock lock(mutex);
  const bool dependent =
      config.numAttrs > 0 && config.attrs[0].val.programmaticStreamSerializationAllowed != 0;
  calls.push_back({"cudaLaunchKernelEx", kernel, current_device(), config.dynamicSmemBytes, dependent});
  meet(lock);
  if (dependent && settings.device() < 900) return kNotSupported;  // has no dependent launch
  const unsigned blocks = config.grid.x, threads = config.block.x;
  if (blocks == 0 || threads == 0 || threads > most_threads(kernel)) return kInvalidValue;
  if (config.dynamicSmemBytes > allowed_dynamic(kernel)) return kInvalidValue;
  if (!settings.dry) run({invoke, arguments, blocks, threads, config.dynamicSmemBytes, dependent, false});
  return cudaSuccess;
}

}  // namespace microspec::emulation

using namespace microspec::emulation;

cudaError_t cudaGetDevice(int* device) {
  const std::lock_guard lock(mutex);
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = settings.sms; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = settings.block_shared; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = settings.sm_shared; break;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const std::lock_guard lock(mutex);
  calls.push_back({"cudaFuncSetAttribute", kernel, current_device(), static_cast<size_t>(value), false});
  if (value < 0 || static_shared.at(kernel) + value > static_cast<size_t>(settings.block_shared)) {
    return kInvalidValue;
  }
  most_dynamic[{kernel, current_device()}] = value;
  return cudaSuccess;
}
