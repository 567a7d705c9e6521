// SPDX-License-Identifier: Apache-2.0
// Sums of floats over a warp, in a fixed order.
#pragma once

#include "platform.cuh"

namespace microspec {

// Returns the sum of values[lane / (32 / kCount)] over the warp: with one value, its sum in every lane. Takes
// kCount + 4 - log2(kCount) shuffles instead of 5 kCount.
template <int kCount>
MICROSPEC_DEVICE float sums_over_warp(float (&values)[kCount]) {
  int width = kWarp / 2;
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2, width /= 2) {
    const bool upper = lane_index() & width;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float sent = upper ? values[i] : values[i + half];
      const float kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, sent, width);
    }
  }
#pragma unroll
  for (; width > 0; width /= 2) values[0] += __shfl_xor_sync(kAllLanes, values[0], width);
  return values[0];
}

}  // namespace microspec
