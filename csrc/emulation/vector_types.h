// SPDX-License-Identifier: Apache-2.0
// The CUDA vector types that kernels use, with CUDA's alignments.
#pragma once

#define MICROSPEC_VECTOR2(name, element, align) \
  struct alignas(align) name {                  \
    element x, y;                               \
  };                                            \
  inline name make_##name(element x, element y) { return {x, y}; }
#define MICROSPEC_VECTOR3(name, element) \
  struct name {                          \
    element x, y, z;                     \
  };                                     \
  inline name make_##name(element x, element y, element z) { return {x, y, z}; }
#define MICROSPEC_VECTOR4(name, element, align) \
  struct alignas(align) name {                  \
    element x, y, z, w;                         \
  };                                            \
  inline name make_##name(element x, element y, element z, element w) { return {x, y, z, w}; }

MICROSPEC_VECTOR2(char2, signed char, 2)
MICROSPEC_VECTOR2(uchar2, unsigned char, 2)
MICROSPEC_VECTOR2(short2, short, 4)
MICROSPEC_VECTOR2(ushort2, unsigned short, 4)
MICROSPEC_VECTOR2(int2, int, 8)
MICROSPEC_VECTOR2(uint2, unsigned, 8)
MICROSPEC_VECTOR2(float2, float, 8)
MICROSPEC_VECTOR2(longlong2, long long, 16)
MICROSPEC_VECTOR2(ulonglong2, unsigned long long, 16)
MICROSPEC_VECTOR2(double2, double, 16)
MICROSPEC_VECTOR3(int3, int)
MICROSPEC_VECTOR3(uint3, unsigned)
MICROSPEC_VECTOR3(float3, float)
MICROSPEC_VECTOR4(char4, signed char, 4)
MICROSPEC_VECTOR4(uchar4, unsigned char, 4)
MICROSPEC_VECTOR4(short4, short, 8)
MICROSPEC_VECTOR4(ushort4, unsigned short, 8)
MICROSPEC_VECTOR4(int4, int, 16)
MICROSPEC_VECTOR4(uint4, unsigned, 16)
MICROSPEC_VECTOR4(float4, float, 16)

#undef MICROSPEC_VECTOR2
#undef MICROSPEC_VECTOR3
#undef MICROSPEC_VECTOR4

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
