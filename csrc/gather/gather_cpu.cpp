// Copies the rows whose id changed, quantising on the way when the slab is int8 or fp8.
//
// A quantised row is q = round(row / scale), scale = amax / largest, rounded half to even. A row
// with nothing but zeros has scale 1. A row with a NaN or infinity has scale NaN and q = 0, so
// that its logit is NaN here as it (nearly always) would be in full precision.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "gather.h"

namespace microspec {

namespace {

// Largest magnitudes: symmetric int8, and float8_e4m3fn.
constexpr float kInt8Max = 127.0f;
constexpr float kFloat8Max = 448.0f;

template <class Source>
float row_scale(const Source* row, int64_t dim, float largest) {
  float amax = 0.0f;
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) {
    const float magnitude = std::fabs(static_cast<float>(row[d]));
    finite &= magnitude <= std::numeric_limits<float>::max();
    amax = magnitude > amax ? magnitude : amax;
  }
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  // A subnormal quotient may be zero; dividing by it would not be finite.
  const float scale = amax / largest;
  return scale >= std::numeric_limits<float>::min() ? scale : 1.0f;
}

template <class Source>
void quantise_row(const Source* row, int64_t dim, DType type, void* target, float* scale) {
  const bool to_int8 = type == DType::i8;
  *scale = row_scale(row, dim, to_int8 ? kInt8Max : kFloat8Max);
  const bool finite = *scale == *scale;
  const auto int8_row = static_cast<int8_t*>(target);
  const auto float8_row = static_cast<c10::Float8_e4m3fn*>(target);
  for (int64_t d = 0; d < dim; ++d) {
    const float value = finite ? static_cast<float>(row[d]) / *scale : 0.0f;
    if (to_int8) {
      int8_row[d] = static_cast<int8_t>(std::fmin(std::fmax(std::nearbyint(value), -kInt8Max), kInt8Max));
    } else {
      float8_row[d] = c10::Float8_e4m3fn(value);
    }
  }
}

}  // namespace

void gather_slots(const GatherArgs& args, int64_t begin, int64_t end) {
  const int64_t slab_row = args.dim * element_size(args.slab_type);
  const int64_t weight_row = args.weight_row_stride * element_size(args.weight_type);
  for (int64_t slot = begin; slot < end; ++slot) {
    const int32_t id = args.active_ids[slot];
    if (args.slab_ids[slot] == id) continue;
    args.slab_ids[slot] = id;
    if (id < 0) continue;
    char* target = static_cast<char*>(args.slab) + slot * slab_row;
    const char* source = static_cast<const char*>(args.weight) + id * weight_row;
    if (args.slab_type == args.weight_type) {
      std::memcpy(target, source, slab_row);
      if (args.slab_scale) args.slab_scale[slot] = args.weight_scale[id];
    } else if (args.weight_type == DType::f32) {
      quantise_row(reinterpret_cast<const float*>(source), args.dim, args.slab_type, target,
                   args.slab_scale + slot);
    } else if (args.weight_type == DType::f16) {
      quantise_row(reinterpret_cast<const c10::Half*>(source), args.dim, args.slab_type, target,
                   args.slab_scale + slot);
    } else {
      quantise_row(reinterpret_cast<const c10::BFloat16*>(source), args.dim, args.slab_type, target,
                   args.slab_scale + slot);
    }
  }
}

}  // namespace microspec
