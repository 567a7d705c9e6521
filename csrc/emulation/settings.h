// SPDX-License-Identifier: Apache-2.0
// The emulated device, and its behaviour where CUDA leaves a choice. Python sets them.
#pragma once

#include <cstdint>

namespace microspec::emulation {

enum class Order { in_order, shuffled };    // of warps and lanes that can run
enum class Copies { eager, late, random };  // when asynchronous copies arrive

struct Settings {
  int arch = 800;       // that the kernels were compiled for
  int device_arch = 0;  // of the device; 0: the same
  int sms = 4;
  int block_shared = 163 * 1024;
  int sm_shared = 164 * 1024;
  Order order = Order::in_order;
  Copies copies = Copies::eager;
  uint64_t seed = 0;        // seed of the next launch; each launch advances it by one
  int resident_blocks = 1;  // blocks that take turns; the others wait until one of these is over
  bool dry = false;         // launches are checked but not run
  // The next launches of this many threads wait for one another before they are checked.
  int launches_meet = 0;

  int device() const { return device_arch ? device_arch : arch; }
};

extern Settings settings;

// SplitMix64: small, and good from the first draw on.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t bound) { return next() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

}  // namespace microspec::emulation
