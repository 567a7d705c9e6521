// SPDX-License-Identifier: Apache-2.0
// quantise_int4_kernel quantises the rows of the slots whose id changed to 4 bits, bit for bit as
// gather_cpu.cpp does.
//
// A thread takes eight neighbouring columns, which become one word of codes. Four neighbouring threads have
// the 32 columns of a group, and exchange their largest magnitudes by shuffles. So a row passes through the
// registers once, without shared memory and without a barrier.
//
// Not yet measured on a GPU.
#pragma once

#include "gather/quantise_kernel.cuh"

namespace microspec::gather {

constexpr int kWordColumns = 8;
constexpr int kGroupWords = static_cast<int>(kScaleGroup) / kWordColumns;

// Eight columns as they were fetched: 16 bytes at a time, or one by one if rows are not aligned.
template <class Source, bool vector>
struct Columns {
  using Part = Chunk<Source, vector>;
  static constexpr int kParts = kWordColumns / Part::kCount;
  Part parts[kParts];

  MICROSPEC_DEVICE void fetch(const Source* source) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      parts[i] = load_chunk(reinterpret_cast<const Part*>(source + i * Part::kCount));
    }
  }
  MICROSPEC_DEVICE void widen(float (&values)[kWordColumns]) const {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      float part[Part::kCount];
      parts[i].widen(part);
#pragma unroll
      for (int j = 0; j < Part::kCount; ++j) values[i * Part::kCount + j] = part[j];
    }
  }
};

// Words that a thread fetches before it quantises the first: 16 registers of columns. A row of 4096 columns
// of 16 bits is one such pass, which waits for memory once.
template <class Source, bool vector>
constexpr int kWordsAhead = !vector               ? 1
                            : sizeof(Source) == 4 ? 2
                                                  : 4;

// Returns the bits of a group's scale, a bf16, from those of its largest magnitude.
MICROSPEC_DEVICE uint32_t group_scale_bits(uint32_t amax) {
  const uint32_t bits = __float_as_uint(scale_of(amax, kInt4Max));
  // Half to even. A NaN keeps its bits, since its low half is zero.
  return (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
}

// Adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits in two's complement.
template <class Quotient>
MICROSPEC_DEVICE uint32_t encode_int4(const float (&values)[kWordColumns], const Quotient& quotient) {
  constexpr float kRound = 12582912.0f;
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < kWordColumns; ++i) {
    word |= (__float_as_uint(quotient(values[i]) + kRound) & 0xfu) << (4 * i);
  }
  return word;
}

// Returns the codes of eight columns of a group; 0 if the group has a NaN or an infinity.
MICROSPEC_DEVICE uint32_t encode_group(const float (&values)[kWordColumns], uint32_t amax,
                                       uint32_t scale_bits) {
  if (amax >= kInfinityBits) return 0;
  const float scale = __uint_as_float(scale_bits);
  return scale_bits >= FastDivision::kSmallestScaleBits
             ? encode_int4(values, FastDivision{scale, __frcp_rn(scale)})
             : encode_int4(values, Division{scale});
}

template <class Source, bool vector>
MICROSPEC_KERNEL(kThreads, kResident4Bit)
quantise_int4_kernel(GatherArgs args, Deal deal) {
  ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  const int words = static_cast<int>(args.dim / kWordColumns);
  for_each_changed(args, deal, [&](int slot, int32_t id) {
    const Source* const row = static_cast<const Source*>(args.weight) + id * args.weight_row_stride;
    uint8_t* const target = static_cast<uint8_t*>(args.slab) + int64_t{slot} * words * 4;
    bf16_t* const scales =
        static_cast<bf16_t*>(args.slab_group_scale) + int64_t{slot} * (words / kGroupWords);
    constexpr int kAhead = kWordsAhead<Source, vector>;
#pragma unroll 1  // every thread comes as often, for the shuffles' sake
    for (int begin = 0; begin < words; begin += kAhead * kThreads) {
      const int first = begin + static_cast<int>(threadIdx.x);
      Columns<Source, vector> fetched[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int index = first + i * kThreads;
        if (index < words) fetched[i].fetch(row + int64_t{index} * kWordColumns);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int index = first + i * kThreads;
        if (begin + i * kThreads >= words) break;
        float values[kWordColumns] = {};
        if (index < words) fetched[i].widen(values);
        uint32_t amax = amax_bits(values);
#pragma unroll
        for (int step = 1; step < kGroupWords; step *= 2) {
          const uint32_t other = __shfl_xor_sync(kAllLanes, amax, step);
          amax = other > amax ? other : amax;
        }
        if (index >= words) continue;
        const uint32_t scale_bits = group_scale_bits(amax);
        const uint32_t word = encode_group(values, amax, scale_bits);
        if (index % kGroupWords == 0)
          scales[index / kGroupWords].bits = static_cast<uint16_t>(scale_bits >> 16);
        if constexpr (vector) {
          reinterpret_cast<uint32_t*>(target)[index] = word;
        } else {
          for (int j = 0; j < 4; ++j) target[4 * index + j] = static_cast<uint8_t>(word >> (8 * j));
        }
      }
    }
  });
}

}  // namespace microspec::gather
