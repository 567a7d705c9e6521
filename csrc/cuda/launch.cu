// SPDX-License-Identifier: Apache-2.0
#include "launch.cuh"

#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

#include "ptx.cuh"

namespace microspec {

namespace {

// Stands for all kernels of the library.
MICROSPEC_KERNEL(kWarp, 1) any_kernel() { ptx::wait_for_earlier_kernels(); }

// Queries the properties of device `index`.
Error ask(int index, Device& device) {
  const std::pair<cudaDeviceAttr, int*> wanted[] = {
      {cudaDevAttrMultiProcessorCount, &device.sms},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &device.block_shared},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, &device.sm_shared},
  };
  for (const auto& [attribute, value] : wanted) {
    if (const cudaError_t error = cudaDeviceGetAttribute(value, attribute, index)) return error;
  }
  return cudaSuccess;
}

// Queries the kernel on the current device, and allows it all of the device's shared memory.
Error ask(const void* kernel, Attributes get_attributes, Loaded& loaded) {
  Device device;
  if (const Error error = current_device(device)) return error;
  cudaFuncAttributes attributes;
  if (const cudaError_t error = get_attributes(&attributes, kernel)) return error;
  loaded.arch = attributes.ptxVersion * 10;
  loaded.static_shared = static_cast<int>(attributes.sharedSizeBytes);
  loaded.dynamic_shared = device.block_shared - loaded.static_shared;
  if (loaded.dynamic_shared <= attributes.maxDynamicSharedSizeBytes) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(loaded.dynamic_shared));
}

// Sets `result` to the value at `key`, which ask(value) makes at the first call.
template <class Key, class Value, class Ask>
Error once(const Key& key, Value& result, Ask&& ask) {
  static std::mutex mutex;
  static std::map<Key, Value> known;
  const std::lock_guard lock(mutex);
  auto found = known.find(key);
  if (found == known.end()) {
    Value value;
    if (const Error error = ask(value)) return error;
    found = known.emplace(key, value).first;
  }
  result = found->second;
  return cudaSuccess;
}

}  // namespace

Error current_device(Device& device) {
  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index)) return error;
  return once(index, device, [&](Device& made) { return ask(index, made); });
}

Error load(const void* kernel, Attributes attributes, Loaded& loaded) {
  int index = 0;
  if (const cudaError_t error = cudaGetDevice(&index)) return error;
  return once(std::pair(kernel, index), loaded, [&](Loaded& made) { return ask(kernel, attributes, made); });
}

int cuda_compiled_arch(int* arch) {
  Loaded loaded;
  const Error error = load(any_kernel, loaded);
  *arch = loaded.arch;
  return error;
}

bool dependent_launch_allowed() {
  static const bool allowed = [] {
    const char* text = std::getenv("MICROSPEC_DEPENDENT_LAUNCH");
    return !text || std::string_view(text) != "0";
  }();
  return allowed;
}

}  // namespace microspec
