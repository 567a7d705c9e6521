// SPDX-License-Identifier: Apache-2.0
// quantise_rows_kernel quantises the rows of the slots whose id changed, bit for bit as gather_cpu.cpp does.
//
// A row is needed twice, for its largest magnitude and for its quotients, but fetched once: a weight in
// pinned host memory must not cross the bus twice. The kernel takes the magnitudes while the row passes
// through the registers to shared memory. Each thread works on the elements that it fetched, so the only
// barrier a row is that of the maximum. A row that does not fit in shared memory is read twice.
//
// Not yet measured on a GPU.
#pragma once

#include <type_traits>

#include "common/dtype.h"
#include "gather/copy_kernel.cuh"

namespace microspec::gather {

constexpr uint32_t kMagnitude = 0x7fffffffu;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr uint32_t kSmallestNormalBits = 0x00800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;

// ---- Step 1: fetch a row and find its largest magnitude
//
// The part of the source that a thread fetches at once: 16 bytes, or one element if rows are not aligned.
template <class Source, bool vector>
struct Chunk;

template <>
struct Chunk<float, true> {
  static constexpr int kCount = 4;
  uint4 bits;
  MICROSPEC_DEVICE void widen(float (&values)[kCount]) const {
    values[0] = __uint_as_float(bits.x);
    values[1] = __uint_as_float(bits.y);
    values[2] = __uint_as_float(bits.z);
    values[3] = __uint_as_float(bits.w);
  }
};

MICROSPEC_DEVICE float2 widened(bf16_t, uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
MICROSPEC_DEVICE float2 widened(f16_t, uint32_t pair) { return ptx::float2_of_f16x2(pair); }

template <class Source>
struct Chunk<Source, true> {
  static constexpr int kCount = 8;
  uint4 bits;
  MICROSPEC_DEVICE void widen(float (&values)[kCount]) const {
    const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = widened(Source{}, pairs[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
};

template <>
struct Chunk<float, false> {
  static constexpr int kCount = 1;
  float value;
  MICROSPEC_DEVICE void widen(float (&values)[kCount]) const { values[0] = value; }
};

template <class Source>
struct Chunk<Source, false> {
  static constexpr int kCount = 1;
  uint16_t bits;
  MICROSPEC_DEVICE void widen(float (&values)[kCount]) const { values[0] = widened(Source{}, bits).x; }
};

template <class AnyChunk>
MICROSPEC_DEVICE AnyChunk load_chunk(const AnyChunk* chunk) {
  if constexpr (sizeof(AnyChunk) == sizeof(uint4)) {
    return {ptx::load_once16(chunk)};
  } else {
    return *chunk;
  }
}

// Returns the bits of the largest magnitude.
template <int kCount>
MICROSPEC_DEVICE uint32_t amax_bits(const float (&values)[kCount]) {
  uint32_t largest = 0;
#pragma unroll
  for (const float value : values) {
    const uint32_t bits = __float_as_uint(value) & kMagnitude;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}
template <class AnyChunk>
MICROSPEC_DEVICE uint32_t amax_bits(const AnyChunk& chunk) {
  float values[AnyChunk::kCount];
  chunk.widen(values);
  return amax_bits(values);
}

// ---- Step 2: divide by the scale and encode
//
// The values q: four in a word, the first in the low byte. A single value is in the low byte.
template <int count>
struct Codes {
  uint32_t word[count > 4 ? count / 4 : 1];
};

// Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits in two's complement.
// |value / scale| is at most 127 plus its rounding error, so no clamp is needed.
MICROSPEC_DEVICE uint32_t encode_pair(int8_t, float low, float high) {
  constexpr float kRound = 12582912.0f;
  return (__float_as_uint(low + kRound) & 0xff) | (__float_as_uint(high + kRound) & 0xff) << 8;
}
MICROSPEC_DEVICE uint32_t encode_pair(f8e4m3_t, float low, float high) {
  return ptx::e4m3x2_of_floats(low, high);
}

// Returns value / scale, correctly rounded.
struct Division {
  float scale;
  MICROSPEC_DEVICE float operator()(float value) const { return __fdiv_rn(value, scale); }
};

// Returns the same with one reciprocal a row and no branch: six instructions instead of about twenty, which
// would dominate the quantisation of a full slab. The first step makes the quotient faithful. By Markstein's
// theorem, the second step then makes it exact, if the reciprocal is correctly rounded and the remainders are
// exact. The remainders are exact unless they underflow. With a scale of at least 2^-64, that needs a
// quotient below 2^-30, which becomes 0 in either type however it is rounded.
struct FastDivision {
  static constexpr uint32_t kSmallestScaleBits = (127u - 64u) << 23;
  float scale, reciprocal;
  MICROSPEC_DEVICE float operator()(float value) const {
    const float rough = __fmul_rn(value, reciprocal);
    const float faithful = __fmaf_rn(__fmaf_rn(-rough, scale, value), reciprocal, rough);
    const float exact = __fmaf_rn(__fmaf_rn(-faithful, scale, value), reciprocal, faithful);
    // A remainder of +0 would turn -0 into +0.
    return __uint_as_float((__float_as_uint(exact) & kMagnitude) | (__float_as_uint(value) & ~kMagnitude));
  }
};

// Returns quotient(value) of each value, rounded to Target.
template <class Target, int count, class Quotient>
MICROSPEC_DEVICE Codes<count> encode(const float (&values)[count], const Quotient& quotient) {
  Codes<count> codes{};
#pragma unroll
  for (int i = 0; i < count; i += 2) {
    const float low = quotient(values[i]);
    const float high = i + 1 < count ? quotient(values[i + 1 < count ? i + 1 : i]) : 0.0f;
    codes.word[i / 4] |= encode_pair(Target{}, low, high) << (i % 4 * 8);
  }
  return codes;
}

// Writes the codes of chunk `index` of a row.
MICROSPEC_DEVICE void store_codes(void* target, int index, const Codes<8>& codes) {
  static_cast<uint2*>(target)[index] = {codes.word[0], codes.word[1]};
}
MICROSPEC_DEVICE void store_codes(void* target, int index, const Codes<4>& codes) {
  static_cast<uint32_t*>(target)[index] = codes.word[0];
}
MICROSPEC_DEVICE void store_codes(void* target, int index, const Codes<1>& codes) {
  static_cast<uint8_t*>(target)[index] = static_cast<uint8_t>(codes.word[0]);
}

// Returns the scale of a row from the bits of its largest magnitude. Magnitudes order as their bits do, with
// infinity and NaN above all. A subnormal quotient has too few bits to divide by, or is zero.
MICROSPEC_DEVICE float scale_of(uint32_t amax, float largest) {
  if (amax >= kInfinityBits) return __uint_as_float(kNanBits);
  const float quotient = __fdiv_rn(__uint_as_float(amax), largest);
  return __float_as_uint(quotient) >= kSmallestNormalBits ? quotient : 1.0f;
}

// ---- The kernel
//
// `staged`: the launch has shared memory for a row of the source.
template <class Source, class Target, bool vector>
MICROSPEC_KERNEL(kThreads, kResident)
quantise_rows_kernel(GatherArgs args, Deal deal, bool staged) {
  using ThreadChunk = Chunk<Source, vector>;
  MICROSPEC_SHARED(uint32_t, warp_amax, 2 * kMaxWarps);
  MICROSPEC_DYNAMIC_SHARED(dynamic);
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const int chunks = static_cast<int>(args.dim / ThreadChunk::kCount);
  const float largest = std::is_same_v<Target, f8e4m3_t> ? kFloat8Max : kInt8Max;
  ThreadChunk* const stage = reinterpret_cast<ThreadChunk*>(dynamic);
  uint32_t* words = warp_amax;
  for_each_changed(args, deal, [&](int slot, int32_t id) {
    const ThreadChunk* const row = reinterpret_cast<const ThreadChunk*>(
        static_cast<const Source*>(args.weight) + id * args.weight_row_stride);
    uint32_t amax = 0;
#pragma unroll 1
    for (int begin = threadIdx.x; begin < chunks; begin += kPass * kThreads) {
      const ThreadChunk* const from = row + begin;
      const int left = chunks - begin;
      ThreadChunk pass[kPass];
#pragma unroll
      for (int i = 0; i < kPass; ++i) {
        pass[i] = i * kThreads < left ? load_chunk(from + i * kThreads) : ThreadChunk{};
      }
#pragma unroll
      for (int i = 0; i < kPass; ++i) {
        if (staged && i * kThreads < left) stage[begin + i * kThreads] = pass[i];
        const uint32_t magnitude = amax_bits(pass[i]);
        amax = magnitude > amax ? magnitude : amax;
      }
    }
    amax = __reduce_max_sync(kAllLanes, amax);
    if (lane_index() == 0) words[warp_index()] = amax;
    __syncthreads();
    amax = __reduce_max_sync(kAllLanes, word_of_warp(words, 0u));
    // Alternate between two sets of words, so that the next row's barrier lies between this read and the next
    // write.
    words = words == warp_amax ? warp_amax + kMaxWarps : warp_amax;

    const float scale = scale_of(amax, largest);
    if (threadIdx.x == 0) args.slab_scale[slot] = scale;
    Target* const target = static_cast<Target*>(args.slab) + slot * args.dim;
    const auto write = [&](const auto& quotient) {
      for (int i = threadIdx.x; i < chunks; i += kThreads) {
        float values[ThreadChunk::kCount];
        (staged ? stage[i] : row[i]).widen(values);
        store_codes(target, i, encode<Target>(values, quotient));
      }
    };
    if (amax >= kInfinityBits) {
      for (int i = threadIdx.x; i < chunks; i += kThreads) {
        store_codes(target, i, Codes<ThreadChunk::kCount>{});
      }
    } else if (__float_as_uint(scale) >= FastDivision::kSmallestScaleBits) {
      write(FastDivision{scale, __frcp_rn(scale)});
    } else {
      write(Division{scale});
    }
  });
}

}  // namespace microspec::gather
