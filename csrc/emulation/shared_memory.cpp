// SPDX-License-Identifier: Apache-2.0
#include "shared_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "races.h"
#include "settings.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace microspec::emulation {

namespace {

constexpr size_t kGuard = 128;
constexpr size_t kDynamicAlignment = 128;
// Arrays of declared size share this much, as in the linker of device code.
constexpr size_t kMostFixed = 48 * 1024;
constexpr size_t kMostArrays = 64;
// Guard, alignment to twice 128 bytes and another 128.
constexpr size_t kRoomPerArray = kGuard + 3 * kDynamicAlignment;
constexpr unsigned char kFill = 0xFF;
constexpr unsigned char kGuardFill = 0xA5;

}  // namespace

SharedMemory::SharedMemory(size_t dynamic_bytes)
    : capacity_(static_cast<size_t>(settings.block_shared) + kMostArrays * kRoomPerArray),
      memory_(new unsigned char[capacity_]) {
  std::memset(memory_.get(), kGuardFill, capacity_);
  arrays_.reserve(kMostArrays);
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(memory_.get(), capacity_);
#endif
  place(nullptr, dynamic_bytes, kDynamicAlignment);
}

SharedMemory::~SharedMemory() {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(memory_.get(), capacity_);
#endif
}

unsigned char* SharedMemory::place(const void* declaration, size_t bytes, size_t alignment) {
  // Use an odd multiple of the alignment, so that code that relies on more fails.
  const auto base = reinterpret_cast<uintptr_t>(memory_.get());
  uintptr_t at = base + used_ + kGuard;
  at = (at + 2 * alignment - 1) / (2 * alignment) * (2 * alignment) + alignment;
  auto* begin = reinterpret_cast<unsigned char*>(at);
  used_ = at - base + bytes;
  asked_for_ += bytes;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(begin, bytes);
#endif
  const races::Unseen unseen;
  std::fill_n(begin, bytes, kFill);
  arrays_.push_back({declaration, begin, bytes, alignment});
  return begin;
}

unsigned char* SharedMemory::dynamic() {
  uses_dynamic_ = true;
  return arrays_[0].begin;
}

void* SharedMemory::fixed(const void* declaration, size_t bytes, size_t alignment, const Site& site) {
  size_t fixed_bytes = bytes;
  for (size_t i = 1; i < arrays_.size(); ++i) {
    if (arrays_[i].declaration == declaration) return arrays_[i].begin;
    fixed_bytes += arrays_[i].bytes;
  }
  const size_t limit = static_cast<size_t>(settings.block_shared);
  if (fixed_bytes > kMostFixed || asked_for_ + bytes > limit || arrays_.size() == kMostArrays) {
    fail(Kind::shared_memory,
         std::to_string(fixed_bytes) + " bytes of declared and " + std::to_string(arrays_[0].bytes) +
             " bytes of dynamic shared memory, where a block may have " + std::to_string(kMostFixed) +
             " declared and " + std::to_string(limit) + " in all",
         site);
  }
  return place(declaration, bytes, alignment);
}

size_t SharedMemory::static_bytes() const {
  const auto padded = [](size_t at, size_t alignment) {
    return (at + alignment - 1) / alignment * alignment;
  };
  size_t end = 0;
  for (size_t i = 1; i < arrays_.size(); ++i) end = padded(end, arrays_[i].alignment) + arrays_[i].bytes;
  return uses_dynamic_ ? padded(end, kDynamicAlignment) : end;
}

bool SharedMemory::contains(const void* pointer, size_t bytes) const {
  const auto* first = static_cast<const unsigned char*>(pointer);
  return std::any_of(arrays_.begin(), arrays_.end(), [&](const Array& array) {
    return first >= array.begin && first + bytes <= array.begin + array.bytes;
  });
}

bool SharedMemory::is_overrun() const {
#ifdef __SANITIZE_ADDRESS__
  return false;
#else
  const unsigned char* at = memory_.get();
  const auto guarded_until = [&](const unsigned char* end) {
    return std::all_of(at, end, [](unsigned char byte) { return byte == kGuardFill; });
  };
  for (const Array& array : arrays_) {
    if (!guarded_until(array.begin)) return true;
    at = array.begin + array.bytes;
  }
  return !guarded_until(at + kGuard);
#endif
}

}  // namespace microspec::emulation
