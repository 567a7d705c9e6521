// SPDX-License-Identifier: Apache-2.0
// gather_slots copies the rows whose id changed. It quantises them if the slab is int8, fp8 or i4 and the
// weight is not.
//
// A quantised row is q = round(row / scale), with scale = amax / largest, rounded half to even. A row of
// zeros, or of values no larger than about 1e-36, has scale 1. A row with a NaN or infinity has scale NaN and
// q = 0, so that its logit is NaN, as it (nearly always) would be in full precision.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <limits>
#include <vector>

#include "common/clones.h"
#include "gather.h"

namespace microspec {

namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u;

// Returns the bits of the largest magnitude. Magnitudes order as their bits do, with infinity and NaN above
// all.
MICROSPEC_CLONES uint32_t amax_bits(const float* row, int64_t dim) {
  uint32_t largest = 0;
  for (int64_t d = 0; d < dim; ++d) {
    uint32_t bits;
    std::memcpy(&bits, row + d, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// Returns the scale of values whose largest magnitude has these bits.
float scale_of(uint32_t bits, float largest_code) {
  float amax;
  std::memcpy(&amax, &bits, sizeof amax);
  const float quotient = amax / largest_code;
  // A subnormal quotient has too few bits to divide by, or is zero.
  return quotient >= std::numeric_limits<float>::min() ? quotient : 1.0f;
}

MICROSPEC_CLONES void quantise_int8(const float* row, int64_t dim, float scale, int8_t* target) {
  // Adding 1.5 * 2^23 rounds to an integer, half to even. |row / scale| is at most 127 plus its rounding
  // error, so no clamp is needed.
  constexpr float kRound = 12582912.0f;
  for (int64_t d = 0; d < dim; ++d) {
    target[d] = static_cast<int8_t>(static_cast<int32_t>((row[d] / scale + kRound) - kRound));
  }
}

void quantise_float8(const float* row, int64_t dim, float scale, c10::Float8_e4m3fn* target) {
  for (int64_t d = 0; d < dim; ++d) target[d] = c10::Float8_e4m3fn(row[d] / scale);
}

// Quantises the groups of a row. A group's rule is that of a row, and its scale is rounded to bf16, half to
// even, before the columns are divided by it. So |column / scale| is at most 7 and a small fraction.
MICROSPEC_CLONES void quantise_int4(const float* row, int64_t dim, uint8_t* target, bf16_t* scales) {
  constexpr float kRound = 12582912.0f;
  for (int64_t d = 0; d < dim; d += kScaleGroup, row += kScaleGroup) {
    const uint32_t largest = amax_bits(row, kScaleGroup);
    if (largest >= kInfinityBits) {
      scales[d / kScaleGroup] = {0x7fc0};
      std::memset(target + d / 2, 0, kScaleGroup / 2);
      continue;
    }
    float scale = scale_of(largest, kInt4Max);
    uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    std::memcpy(&scale, &bits, sizeof scale);
    scales[d / kScaleGroup] = {static_cast<uint16_t>(bits >> 16)};
    int32_t codes[kScaleGroup];
    for (int64_t i = 0; i < kScaleGroup; ++i) {
      codes[i] = static_cast<int32_t>((row[i] / scale + kRound) - kRound);
    }
    for (int64_t i = 0; i < kScaleGroup / 2; ++i) {
      target[d / 2 + i] = static_cast<uint8_t>((codes[2 * i] & 15) | (codes[2 * i + 1] & 15) << 4);
    }
  }
}

// Writes a row of `type` to `target` and its scale to *scale.
void quantise_row(const float* row, int64_t dim, DType type, void* target, float* scale) {
  const uint32_t bits = amax_bits(row, dim);
  if (bits >= kInfinityBits) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    std::memset(target, 0, dim);
    return;
  }
  *scale = scale_of(bits, type == DType::i8 ? kInt8Max : kFloat8Max);
  if (type == DType::i8) {
    quantise_int8(row, dim, *scale, static_cast<int8_t*>(target));
  } else {
    quantise_float8(row, dim, *scale, static_cast<c10::Float8_e4m3fn*>(target));
  }
}

template <class Source>
const float* widened(const char* source, int64_t dim, std::vector<float>& buffer) {
  buffer.resize(dim);
  for (int64_t d = 0; d < dim; ++d) buffer[d] = reinterpret_cast<const Source*>(source)[d];
  return buffer.data();
}

// Returns the row in fp32: in `buffer`, or in place if it already is fp32.
const float* as_float(const char* source, DType type, int64_t dim, std::vector<float>& buffer) {
  switch (type) {
    case DType::f16: return widened<c10::Half>(source, dim, buffer);
    case DType::bf16: return widened<c10::BFloat16>(source, dim, buffer);
    case DType::f32: return reinterpret_cast<const float*>(source);
    default: __builtin_trap();  // the op's checks admit no other type
  }
}

}  // namespace

void gather_slots(const GatherArgs& args, int64_t begin, int64_t end) {
  const int64_t slab_row = row_bytes(args.slab_type, args.dim), scales = scale_bytes(args.dim);
  const int64_t weight_row = args.weight_row_stride * element_size(args.weight_type);
  std::vector<float> buffer;
  for (int64_t slot = begin; slot < end; ++slot) {
    const int32_t id = args.active_ids[slot];
    if (args.slab_ids[slot] == id) continue;
    args.slab_ids[slot] = id;
    if (id < 0) continue;
    char* target = static_cast<char*>(args.slab) + slot * slab_row;
    const char* source = static_cast<const char*>(args.weight) + id * weight_row;
    if (args.slab_type == args.weight_type) {
      if (slab_row > 0) std::memcpy(target, source, slab_row);  // rows of zero bytes may be at null
      if (args.slab_scale) args.slab_scale[slot] = args.weight_scale[id];
      if (args.slab_group_scale && scales > 0) {
        std::memcpy(static_cast<char*>(args.slab_group_scale) + slot * scales,
                    static_cast<const char*>(args.weight_group_scale) + id * scales, scales);
      }
      continue;
    }
    const float* row = as_float(source, args.weight_type, args.dim, buffer);
    if (args.slab_type == DType::i4) {
      quantise_int4(row, args.dim, reinterpret_cast<uint8_t*>(target),
                    static_cast<bf16_t*>(args.slab_group_scale) + slot * (args.dim / kScaleGroup));
    } else {
      quantise_row(row, args.dim, args.slab_type, target, args.slab_scale + slot);
    }
  }
}

}  // namespace microspec
