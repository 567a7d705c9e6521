// SPDX-License-Identifier: Apache-2.0
// mma.sync m16n8k16: gathers the lanes' elements into matrices, multiplies, and scatters the result.
#include "collectives.h"
#include "numbers.h"

namespace microspec::emulation {

namespace {

constexpr int kM = 16, kN = 8, kK = 16;

// Widens the two elements of a register.
void unpack(uint32_t pair, bool bf16, float& low, float& high) {
  const auto first = static_cast<uint16_t>(pair), second = static_cast<uint16_t>(pair >> 16);
  low = bf16 ? float_of_bf16(first) : float_of_f16(first);
  high = bf16 ? float_of_bf16(second) : float_of_f16(second);
}

}  // namespace

// Accumulates in double and rounds once. A tensor core truncates on the way, so its result may differ in the
// last bits.
void multiply(const std::array<MmaLane*, 32>& lanes) {
  float a[kM][kK], b[kK][kN];
  const bool bf16 = lanes[0]->bf16;
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4 * 2;
    const MmaLane& from = *lanes[lane];
    unpack(from.a[0], bf16, a[g][t], a[g][t + 1]);
    unpack(from.a[1], bf16, a[g + 8][t], a[g + 8][t + 1]);
    unpack(from.a[2], bf16, a[g][t + 8], a[g][t + 9]);
    unpack(from.a[3], bf16, a[g + 8][t + 8], a[g + 8][t + 9]);
    unpack(from.b[0], bf16, b[t][g], b[t + 1][g]);
    unpack(from.b[1], bf16, b[t + 8][g], b[t + 9][g]);
  }
  double d[kM][kN] = {};
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < kN; ++n) d[m][n] += static_cast<double>(a[m][k]) * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4 * 2;
    float* sums = lanes[lane]->d;
    sums[0] = static_cast<float>(sums[0] + d[g][t]);
    sums[1] = static_cast<float>(sums[1] + d[g][t + 1]);
    sums[2] = static_cast<float>(sums[2] + d[g + 8][t]);
    sums[3] = static_cast<float>(sums[3] + d[g + 8][t + 1]);
  }
}

}  // namespace microspec::emulation
