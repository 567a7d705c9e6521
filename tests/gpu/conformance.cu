// SPDX-License-Identifier: Apache-2.0
// Kernels that each call one function of cuda/ptx.cuh, behind C entry points for
// tests/gpu/test_conformance.py. An entry point returns the launch's cudaError_t.
#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"

namespace microspec {
namespace {

constexpr int kThreads = 256;

// ---- One element per thread: f(input element).
template <class In, class Out, class F>
__global__ void map_kernel(const In* in, Out* out, int64_t count, F f) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < count) out[i] = f(in + i);
}

template <class In, class Out, class F>
int map(const void* in, void* out, int64_t count, void* stream, F f) {
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(count, kThreads));
  map_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const In*>(in),
                                                                         static_cast<Out*>(out), count, f);
  return cudaGetLastError();
}

struct FloatsOfF16 {
  __device__ float2 operator()(const uint32_t* pair) const { return ptx::float2_of_f16x2(*pair); }
};
struct F16OfFloats {
  __device__ uint32_t operator()(const float2* v) const { return ptx::f16x2_of_floats(v->x, v->y); }
};
struct Bf16OfFloats {
  __device__ uint32_t operator()(const float2* v) const { return ptx::bf16x2_of_floats(v->x, v->y); }
};
struct F16OfE4m3 {
  __device__ uint32_t operator()(const uint32_t* pair) const { return ptx::f16x2_of_e4m3x2(*pair); }
};
struct E4m3OfFloats {
  __device__ uint32_t operator()(const float2* v) const { return ptx::e4m3x2_of_floats(v->x, v->y); }
};
// Words a, b, c, not used.
struct FmaBf16 {
  __device__ uint32_t operator()(const uint4* v) const { return ptx::fma_bf16x2(v->x, v->y, v->z); }
};
struct FmaF16 {
  __device__ uint32_t operator()(const uint4* v) const { return ptx::fma_f16x2(v->x, v->y, v->z); }
};
struct AndXor {
  __device__ uint32_t operator()(const uint4* v) const { return ptx::and_xor(v->x, v->y, v->z); }
};
struct LoadOnce {
  __device__ uint4 operator()(const uint4* word) const { return ptx::load_once16(word); }
};
struct LoadShared {
  __device__ uint4 operator()(const uint4* word) const {
    __shared__ uint4 words[kThreads];
    words[threadIdx.x] = *word;
    __threadfence_block();  // the compiler does not know that the load reads memory
    return ptx::load_shared16(words + threadIdx.x);
  }
};

// ---- One product per block of one warp, in the lane layout of ptx.cuh.
template <bool bf16>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = blockIdx.x * kWarp + threadIdx.x;
  uint32_t own_a[4], own_b[2];
  float own_d[4];
  for (int i = 0; i < 4; ++i) own_a[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) own_b[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) own_d[i] = d[lane * 4 + i];
  if (bf16) {
    ptx::mma_bf16(own_d, own_a, own_b);
  } else {
    ptx::mma_f16(own_d, own_a, own_b);
  }
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = own_d[i];
}

// ---- Copies through a ring of buffers with one barrier each, over many phases.
constexpr int kPlaces = 3;

MICROSPEC_DEVICE void make_barriers(uint64_t* barriers, int arrivals) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kPlaces; ++i) ptx::mbarrier_init(barriers + i, arrivals);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
}

// Each phase moves one 16-byte word per thread, which another thread reads back. In odd phases every
// third thread arrives without a copy; its word is then left out.
MICROSPEC_DEVICE bool has_word(int phase, int thread) { return phase % 2 == 0 || thread % 3 != 0; }

template <bool words>
__global__ void cp_async_kernel(const uint4* source, uint4* target, int phases) {
  __shared__ uint64_t barriers[kPlaces];
  __shared__ __align__(128) uint4 places[kPlaces][kThreads];
  make_barriers(barriers, kThreads);
  const int me = threadIdx.x, other = (threadIdx.x + 37) % kThreads;
  const auto start = [&](int phase) {
    uint4* place = places[phase % kPlaces] + me;
    const uint4* from = source + phase * kThreads + me;
    if (has_word(phase, me) && !words) ptx::cp_async16(place, from);
    for (int i = 0; has_word(phase, me) && words && i < 4; ++i) {
      ptx::cp_async4(reinterpret_cast<uint32_t*>(place) + i, reinterpret_cast<const uint32_t*>(from) + i);
    }
    ptx::cp_async_arrive(barriers + phase % kPlaces);
  };
  for (int phase = 0; phase < min(phases, kPlaces); ++phase) start(phase);
  for (int phase = 0; phase < phases; ++phase) {
    ptx::mbarrier_wait(barriers + phase % kPlaces, phase / kPlaces % 2);
    if (has_word(phase, other)) target[phase * kThreads + other] = places[phase % kPlaces][other];
    __syncthreads();  // the buffer is free
    if (phase + kPlaces < phases) start(phase + kPlaces);
  }
}

// Copy sizes[phase] bytes, in two pieces if divisible; announce zero bytes without a copy.
constexpr int kMostBytes = 8192;

__global__ void bulk_kernel(const unsigned char* source, unsigned char* target, const int* sizes,
                            int phases) {
  __shared__ uint64_t barriers[kPlaces];
  __shared__ __align__(128) unsigned char places[kPlaces][kMostBytes];
  make_barriers(barriers, 1);
  const auto start = [&](int phase) {
    if (threadIdx.x != 0) return;
    const uint32_t bytes = sizes[phase], cut = bytes / 32 * 16;
    uint64_t* barrier = barriers + phase % kPlaces;
    unsigned char* place = places[phase % kPlaces];
    const unsigned char* from = source + int64_t{phase} * kMostBytes;
    ptx::mbarrier_arrive_expect(barrier, bytes);
    if (cut > 0) ptx::bulk_copy(place, from, cut, barrier);
    if (bytes > cut) ptx::bulk_copy(place + cut, from + cut, bytes - cut, barrier);
  };
  for (int phase = 0; phase < min(phases, kPlaces); ++phase) start(phase);
  for (int phase = 0; phase < phases; ++phase) {
    ptx::mbarrier_wait(barriers + phase % kPlaces, phase / kPlaces % 2);
    for (int i = threadIdx.x; i < sizes[phase]; i += blockDim.x) {
      target[int64_t{phase} * kMostBytes + i] = places[phase % kPlaces][i];
    }
    __syncthreads();
    if (phase + kPlaces < phases) start(phase + kPlaces);
  }
}

// Warps 0 and 1 take turns, each by an arrival on the other's barrier. `seen` is the round's number
// that each warp reads from shared memory after its wait.
__global__ void ping_pong_kernel(int* seen, int rounds, int64_t delay) {
  __shared__ uint64_t barriers[kPlaces];
  __shared__ volatile int said[2];
  make_barriers(barriers, 1);
  const bool ping = warp_index() == 0;
  for (int round = 0; round < rounds; ++round) {
    const uint32_t parity = round % 2;
    if (!ping) {
      ptx::mbarrier_wait(barriers, parity);
      if (lane_index() == 0) seen[2 * round] = said[0];
    }
    __syncwarp();
    if (lane_index() == 0) {
      const int64_t start = clock64();
      while (clock64() - start < delay) {
      }
      said[ping ? 0 : 1] = round + 1;
      ptx::mbarrier_arrive_expect(barriers + (ping ? 0 : 1), 0);
    }
    __syncwarp();
    if (ping) {
      ptx::mbarrier_wait(barriers + 1, parity);
      if (lane_index() == 0) seen[2 * round + 1] = said[1];
    }
  }
}

// ---- Dependent launches: each kernel reads the value that the previous one writes late.
MICROSPEC_DEVICE uint64_t now() {
  uint64_t nanoseconds;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  return nanoseconds;
}

// times: [began, ended] of each kernel.
__global__ void link_kernel(int* values, uint64_t* times, int index, int64_t delay) {
  if (threadIdx.x == 0) times[2 * index] = now();
  ptx::let_next_kernel_start();
  ptx::wait_for_earlier_kernels();
  if (threadIdx.x != 0) return;
  const int value = static_cast<volatile int*>(values)[index];
  const int64_t start = clock64();
  while (clock64() - start < delay) {
  }
  static_cast<volatile int*>(values)[index + 1] = value + 1;
  times[2 * index + 1] = now();
}

}  // namespace
}  // namespace microspec

using namespace microspec;

#define EXPORT extern "C" __attribute__((visibility("default"))) int

EXPORT floats_of_f16(const void* in, void* out, int64_t count, void* stream) {
  return map<uint32_t, float2>(in, out, count, stream, FloatsOfF16{});
}
EXPORT f16_of_floats(const void* in, void* out, int64_t count, void* stream) {
  return map<float2, uint32_t>(in, out, count, stream, F16OfFloats{});
}
EXPORT bf16_of_floats(const void* in, void* out, int64_t count, void* stream) {
  return map<float2, uint32_t>(in, out, count, stream, Bf16OfFloats{});
}
EXPORT f16_of_e4m3(const void* in, void* out, int64_t count, void* stream) {
  return map<uint32_t, uint32_t>(in, out, count, stream, F16OfE4m3{});
}
EXPORT e4m3_of_floats(const void* in, void* out, int64_t count, void* stream) {
  return map<float2, uint32_t>(in, out, count, stream, E4m3OfFloats{});
}
EXPORT fma_bf16(const void* in, void* out, int64_t count, void* stream) {
  return map<uint4, uint32_t>(in, out, count, stream, FmaBf16{});
}
EXPORT fma_f16(const void* in, void* out, int64_t count, void* stream) {
  return map<uint4, uint32_t>(in, out, count, stream, FmaF16{});
}
EXPORT and_xor(const void* in, void* out, int64_t count, void* stream) {
  return map<uint4, uint32_t>(in, out, count, stream, AndXor{});
}
EXPORT load_once(const void* in, void* out, int64_t count, void* stream) {
  return map<uint4, uint4>(in, out, count, stream, LoadOnce{});
}
EXPORT load_shared(const void* in, void* out, int64_t count, void* stream) {
  return map<uint4, uint4>(in, out, count, stream, LoadShared{});
}

EXPORT mma(const uint32_t* a, const uint32_t* b, float* d, int64_t count, int bf16, void* stream) {
  const auto kernel = bf16 ? mma_kernel<true> : mma_kernel<false>;
  kernel<<<static_cast<unsigned>(count), kWarp, 0, static_cast<cudaStream_t>(stream)>>>(a, b, d);
  return cudaGetLastError();
}

EXPORT cp_async(const uint4* source, uint4* target, int phases, int words, void* stream) {
  const auto kernel = words ? cp_async_kernel<true> : cp_async_kernel<false>;
  kernel<<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(source, target, phases);
  return cudaGetLastError();
}
EXPORT bulk(const unsigned char* source, unsigned char* target, const int* sizes, int phases, void* stream) {
  bulk_kernel<<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(source, target, sizes, phases);
  return cudaGetLastError();
}
EXPORT ping_pong(int* seen, int rounds, int64_t delay, void* stream) {
  ping_pong_kernel<<<1, 2 * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(seen, rounds, delay);
  return cudaGetLastError();
}

EXPORT chain(int* values, uint64_t* times, int kernels, int64_t delay, int dependent, void* stream) {
  for (int i = 0; i < kernels; ++i) {
    const Launch how{1, kWarp, 0, stream, dependent != 0};
    if (const Error error = launch(link_kernel, how, values, times, i, delay)) return error;
  }
  return cudaSuccess;
}
