// SPDX-License-Identifier: Apache-2.0
// Counts a warp's conflicts in shared memory at compile time, for static_asserts beside the layouts.
#pragma once

#include "platform.cuh"

namespace microspec {

// Returns the wavefronts of an access in which lane i reads or writes kWords consecutive words from word
// at(i) on; -1: the lane is idle. The hardware serves 32 lanes of 4 bytes at a time, 16 of 8 and 8 of 16,
// and each of the 32 banks gives one word a wavefront. Lanes that share a word share its wavefront.
template <int kWords, class At>
constexpr int wavefronts(At at) {
  constexpr int kBanks = 32, kLanes = kWarp / kWords;
  int total = 0;
  for (int first = 0; first < kWarp; first += kLanes) {
    int worst = 0;
    for (int bank = 0; bank < kBanks; ++bank) {
      int words[kLanes * kWords] = {}, count = 0;
      for (int lane = first; lane < first + kLanes; ++lane) {
        for (int word = at(lane); word >= 0 && word < at(lane) + kWords; ++word) {
          bool is_new = word % kBanks == bank;
          for (int i = 0; i < count; ++i) is_new = is_new && words[i] != word;
          if (is_new) words[count++] = word;
        }
      }
      worst = count > worst ? count : worst;
    }
    total += worst;
  }
  return total;
}

}  // namespace microspec
