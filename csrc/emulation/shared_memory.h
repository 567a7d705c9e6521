// SPDX-License-Identifier: Apache-2.0
// The shared memory of one block. Every array lies between guards, has no more than its declared alignment,
// and is filled with 0xFF.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "failure.h"

namespace microspec::emulation {

class SharedMemory {
 public:
  explicit SharedMemory(size_t dynamic_bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Returns the dynamic array, and notes that the kernel has one.
  unsigned char* dynamic();
  // Returns the array that `declaration` identifies.
  void* fixed(const void* declaration, size_t bytes, size_t alignment, const Site& site);
  // Bytes of the fixed arrays as ptxas lays them out, with the padding before the dynamic one.
  size_t static_bytes() const;
  bool contains(const void* pointer, size_t bytes) const;
  // Whether a guard was overwritten. Always false with AddressSanitizer, which stops at the write itself.
  bool is_overrun() const;

 private:
  struct Array {
    const void* declaration;
    unsigned char* begin;
    size_t bytes;
    size_t alignment;
  };
  unsigned char* place(const void* declaration, size_t bytes, size_t alignment);

  size_t capacity_;
  std::unique_ptr<unsigned char[]> memory_;
  bool uses_dynamic_ = false;
  size_t used_ = 0;       // bytes of memory_ in use, guards included
  size_t asked_for_ = 0;  // bytes in arrays
  std::vector<Array> arrays_;
};

}  // namespace microspec::emulation
