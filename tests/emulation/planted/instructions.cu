// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "kernels.h"

namespace planted {

using namespace microspec;

namespace {

MICROSPEC_KERNEL(kWarp, 1) mma_kernel(float* d, const uint16_t* a, const uint16_t* b, bool bf16) {
  const int g = lane_index() / 4, t = lane_index() % 4 * 2;
  const auto pair_of_a = [&](int m, int k) { return uint32_t{a[m * 16 + k + 1]} << 16 | a[m * 16 + k]; };
  const auto pair_of_b = [&](int k, int n) { return uint32_t{b[(k + 1) * 8 + n]} << 16 | b[k * 8 + n]; };
  const uint32_t left[4] = {pair_of_a(g, t), pair_of_a(g + 8, t), pair_of_a(g, t + 8),
                            pair_of_a(g + 8, t + 8)};
  const uint32_t right[2] = {pair_of_b(t, g), pair_of_b(t + 8, g)};
  float sums[4] = {d[g * 8 + t], d[g * 8 + t + 1], d[(g + 8) * 8 + t], d[(g + 8) * 8 + t + 1]};
  if (bf16) {
    ptx::mma_bf16(sums, left, right);
  } else {
    ptx::mma_f16(sums, left, right);
  }
  d[g * 8 + t] = sums[0];
  d[g * 8 + t + 1] = sums[1];
  d[(g + 8) * 8 + t] = sums[2];
  d[(g + 8) * 8 + t + 1] = sums[3];
}

MICROSPEC_KERNEL(kWarp, 1) warp_kernel(int* out, const int* in, unsigned mask) {
  const int lane = lane_index();
  if (!(mask >> lane & 1)) return;
  const int value = in[lane];
  const auto word = static_cast<unsigned>(value);
  int operation = 0;
  const auto note = [&](long long result) { out[operation++ * kWarp + lane] = static_cast<int>(result); };
  note(__ballot_sync(mask, value > 0));
  note(__any_sync(mask, value > 1000));
  note(__all_sync(mask, value > -1000));
  note(__match_any_sync(mask, value));
  note(__reduce_add_sync(mask, value));
  note(__reduce_min_sync(mask, value));
  note(__reduce_max_sync(mask, value));
  note(__reduce_min_sync(mask, word));
  note(__reduce_max_sync(mask, word));
  note(__reduce_and_sync(mask, word));
  note(__reduce_or_sync(mask, word));
  note(__reduce_xor_sync(mask, word));
  if (mask != kAllLanes) return;
  for (int width = 8; width <= 32; width *= 4) {
    note(__shfl_sync(mask, value, 37, width));
    note(__shfl_up_sync(mask, value, 3, width));
    note(__shfl_down_sync(mask, value, 3, width));
    note(__shfl_xor_sync(mask, value, 13, width));
  }
  note(__shfl_sync(mask, static_cast<long long>(value) << 32, 5) >> 32);
  note(static_cast<int>(__shfl_xor_sync(mask, value * 0.5, 1) * 2));
  note(static_cast<int>(__shfl_xor_sync(mask, value * 0.5f, 1) * 2));
}

template <class To, class From, class F>
MICROSPEC_KERNEL(kWarp, 1)
map_kernel(To* out, const From* in, int count, F f) {
  for (int i = threadIdx.x; i < count; i += kWarp) out[i] = static_cast<To>(f(in[i]));
}

template <class To, class From, class F>
int map(To* out, const From* in, int count, F f) {
  return launch(map_kernel<To, From, F>, Launch{1, kWarp, 0, nullptr}, out, in, count, f);
}

MICROSPEC_KERNEL(512, 1) block_kernel(int* out, const int* in) {
  const int i = threadIdx.x, threads = blockDim.x;
  out[i] = __syncthreads_count(in[i] > 0);
  out[threads + i] = __syncthreads_and(in[i] > 0);
  out[2 * threads + i] = __syncthreads_or(in[i] > 0);
}

MICROSPEC_KERNEL(512, 1) atomics_kernel(unsigned* cells) {
  const unsigned i = threadIdx.x;
  atomicAdd(&cells[0], i);
  atomicMin(&cells[1], i + 3);
  atomicMax(&cells[2], i);
  atomicOr(&cells[3], 1u << i % 32);
  atomicAnd(&cells[4], ~(1u << i % 16));
  atomicInc(&cells[5], 6u);
  unsigned expected = i;
  while (atomicCAS(&cells[6], expected, expected + 1) != expected) {  // each in its turn
  }
  atomicMax(reinterpret_cast<int*>(&cells[7]), -static_cast<int>(i));
  if (atomicExch(&cells[8], i) == 0xffffffffu) atomicAdd(&cells[9], 1u);
}

}  // namespace

int mma(float* d, const uint16_t* a, const uint16_t* b, bool bf16) {
  return launch(mma_kernel, Launch{1, kWarp, 0, nullptr}, d, a, b, bf16);
}

int warp_operations(int* out, const int* in, unsigned mask) {
  return launch(warp_kernel, Launch{1, kWarp, 0, nullptr}, out, in, mask);
}

int f16_to_float(float* out, const uint16_t* in, int count) {
  return map(out, in, count, [](uint16_t bits) { return ptx::float2_of_f16x2(uint32_t{bits} << 16 | 1).y; });
}
int float_to_f16(uint16_t* out, const float* in, int count) {
  return map(out, in, count, [](float value) { return ptx::f16x2_of_floats(1, value) >> 16; });
}
int float_to_bf16(uint16_t* out, const float* in, int count) {
  return map(out, in, count, [](float value) { return ptx::bf16x2_of_floats(value, 1) & 0xffff; });
}
int e4m3_to_f16(uint16_t* out, const uint8_t* in, int count) {
  return map(out, in, count,
             [](uint8_t bits) { return ptx::f16x2_of_e4m3x2(uint32_t{bits} << 8 | 1) >> 16; });
}
int float_to_e4m3(uint8_t* out, const float* in, int count) {
  return map(out, in, count, [](float value) { return ptx::e4m3x2_of_floats(value, 1) & 0xff; });
}

int block_operations(int* out, const int* in, int threads) {
  return launch(block_kernel, Launch{1, static_cast<unsigned>(threads), 0, nullptr}, out, in);
}

int atomics(unsigned* cells, int threads) {
  return launch(atomics_kernel, Launch{1, static_cast<unsigned>(threads), 0, nullptr}, cells);
}

}  // namespace planted
