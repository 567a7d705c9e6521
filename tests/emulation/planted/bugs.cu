// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch.cuh"
#include "cuda/ptx.cuh"
#include "kernels.h"

namespace planted {

using namespace microspec;

namespace {

constexpr int kTile = 64;

MICROSPEC_KERNEL(kTile, 1) tile_sums_kernel(float* out, const float* in, int tiles, int bug) {
  MICROSPEC_SHARED(float, tile, kTile);
  const int i = threadIdx.x;
  float sum = 0;
  for (int t = 0; t < tiles; ++t) {
    tile[i] = in[t * kTile + i];
    if (bug == kBarrierOfSomeThreads && i >= 40) return;
    if (bug == kTwoBarriers && i >= 40) {
      __syncthreads();
    } else {
      __syncthreads();
    }
    sum += tile[(i + 1) % kTile];
    if (bug != kNoBarrierInLoop) __syncthreads();
  }
  out[i] = sum;
}

// Two buffers, each filled one tile before its use.
MICROSPEC_KERNEL(kTile, 1) copied_sums_kernel(float* out, const float* in, int tiles, int bug) {
  MICROSPEC_SHARED(uint4, places, 2 * kTile / 4);
  MICROSPEC_SHARED(uint64_t, full, 2);
  const int i = threadIdx.x;
  const bool bulk = MICROSPEC_ARCH >= 900;
  constexpr uint32_t kBytes = kTile * sizeof(float);
  constexpr int kChunks = kBytes / 16;
  if (i == 0 && bug != kUninitialised) {
    for (int p = 0; p < 2; ++p) ptx::mbarrier_init(&full[p], bulk ? 1 : kChunks);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  const auto start = [&](int t) {
    float* place = reinterpret_cast<float*>(places) + t % 2 * kTile;
    uint64_t* barrier = &full[t % 2];
    const float* source =
        in + t * kTile + (bug == kMisalignedCopy ? 1 : 0) + (bug == kPastTheSource ? kTile : 0);
    if (bulk) {
      if (i != 0) return;
      const uint32_t announced = bug == kMoreBytesThanAnnounced    ? kBytes - 16
                                 : bug == kFewerBytesThanAnnounced ? kBytes + 16
                                                                   : kBytes;
      if (bug != kNoArrival) ptx::mbarrier_arrive_expect(barrier, announced);
      ptx::bulk_copy(place, source, bug == kOddBytes ? kBytes - 8 : kBytes, barrier);
    } else if (i < kChunks) {
      ptx::cp_async16(place + 4 * i, source + 4 * i);
      if (bug != kNoArrival) ptx::cp_async_arrive(barrier);
    }
  };
  float sum = 0;
  start(0);
  __syncthreads();
  for (int t = 0; t < tiles; ++t) {
    if (t + 1 < tiles) start(t + 1);
    if (bug != kNoWait || i < kWarp) ptx::mbarrier_wait(&full[t % 2], t / 2 % 2);
    sum += reinterpret_cast<const float*>(places)[t % 2 * kTile + (i + 1) % kTile];
    __syncthreads();
  }
  out[i] = sum;
}

MICROSPEC_KERNEL(kWarp, 1)
grid_sum_kernel(int* out, int* partials, unsigned* ticket, const int* in, int bug) {
  MICROSPEC_SHARED(int, total, 1);
  MICROSPEC_SHARED(unsigned, drawn, 1);
  if (threadIdx.x == 0) total[0] = 0;
  __syncthreads();
  atomicAdd(&total[0], in[blockIdx.x * kWarp + threadIdx.x]);
  if (bug != kNoBarrierBeforeTicket) __syncthreads();
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = total[0];
    if (bug != kNoFence) __threadfence();
    drawn[0] = atomicAdd(ticket, 1u);
    if (bug != kNoFenceAfterTicket) __threadfence();
  }
  __syncthreads();
  if (drawn[0] != gridDim.x - 1) return;
  if (threadIdx.x == 0) {
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += partials[b];
    out[0] = sum;
    if (bug == kPlainReset) {
      *ticket = 0;
    } else {
      atomicExch(ticket, 0u);
    }
  }
}

MICROSPEC_KERNEL(kWarp, 1) warp_sums_kernel(int* out, const int* in, int bug) {
  MICROSPEC_SHARED(int, words, kWarp);
  MICROSPEC_SHARED(uint64_t, never, 1);
  const int i = threadIdx.x;
  if (bug == kExitedLane && i == 20) return;
  if (bug == kWaitForNobody) {
    if (i == 0) ptx::mbarrier_init(never, 1);
    __syncwarp();
    ptx::mbarrier_wait(never, 0);
  }
  int sum = in[i];
  for (int distance = 16; distance > 0; distance /= 2) {
    const bool outside = bug == kMaskWithoutCaller && i == 3;
    const unsigned mask = outside ? ~(1u << 3) : bug == kLaneOutsideMask && i < 16 ? 0xffffu : kAllLanes;
    if (bug == kLaneOutsideMask && i >= 16) break;
    sum += __shfl_xor_sync(mask, sum, distance);
  }
  if (bug == kOtherInstruction && i % 2) {
    __ballot_sync(kAllLanes, 1);
  } else {
    __any_sync(kAllLanes, 1);
  }
  words[i] = sum;
  if (bug != kNoSyncWarp) __syncwarp();
  out[i] = words[(i + 7) % kWarp];
}

MICROSPEC_KERNEL(kWarp, 1)
copy_rows_kernel(float* out, const float* in, const int* rows, int count, int bug) {
  constexpr int kRow = 16;
  MICROSPEC_DYNAMIC_SHARED(memory);
  auto* staged = reinterpret_cast<float4*>(memory);
  const int i = threadIdx.x;
  for (int r = 0; r < count; ++r) {
    if (i < kRow / 4) {
      const float* source = in + (rows[r] + (bug == kRowPastTheEnd ? 1 : 0)) * kRow + 4 * i;
      if (bug == kMisalignedLoad) source += 1;
      const uint4 words = ptx::load_once16(source);
      const float4 values = {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z),
                             __uint_as_float(words.w)};
      staged[i + (bug == kSharedOverrun ? 1 : 0)] = values;
    }
    __syncwarp();
    const float* staged_floats = reinterpret_cast<const float*>(memory) + (bug == kMisalignedAccess ? 1 : 0);
    if (i < kRow / 4) {
      *reinterpret_cast<float4*>(out + r * kRow + 4 * i) = reinterpret_cast<const float4*>(staged_floats)[i];
    }
    __syncwarp();
  }
}

MICROSPEC_KERNEL(kWarp, 1) too_much_shared_kernel(int* out) {
  MICROSPEC_SHARED(int, words, 12 * 1024 + 1);
  words[threadIdx.x] = 1;
  out[threadIdx.x] = words[threadIdx.x];
}

MICROSPEC_KERNEL(kWarp, 1) dependent_kernel(int* out, int bug) {
  if (bug != kMissedWait || threadIdx.x != 5) ptx::wait_for_earlier_kernels();
  ptx::let_next_kernel_start();
  out[threadIdx.x] = static_cast<int>(threadIdx.x);
}

MICROSPEC_KERNEL(96, 2) sized_kernel() { __syncthreads(); }

}  // namespace

int tile_sums(float* out, const float* in, int tiles, int bug) {
  return launch(tile_sums_kernel, Launch{1, kTile, 0, nullptr}, out, in, tiles, bug);
}

int copied_sums(float* out, const float* in, int tiles, int bug) {
  return launch(copied_sums_kernel, Launch{1, kTile, 0, nullptr}, out, in, tiles, bug);
}

int grid_sum(int* out, int* partials, unsigned* ticket, const int* in, int blocks, int bug) {
  const Launch how{static_cast<unsigned>(blocks), kWarp, 0, nullptr};
  return launch(grid_sum_kernel, how, out, partials, ticket, in, bug);
}

int warp_sums(int* out, const int* in, int bug) {
  return launch(warp_sums_kernel, Launch{1, kWarp, 0, nullptr}, out, in, bug);
}

int copy_rows(float* out, const float* in, const int* rows, int count, int bug) {
  if (bug == kTooMuchShared) {
    return launch(too_much_shared_kernel, Launch{1, kWarp, 0, nullptr}, reinterpret_cast<int*>(out));
  }
  return launch(copy_rows_kernel, Launch{1, kWarp, 64, nullptr}, out, in, rows, count, bug);
}

int dependent(int* out, int bug) {
  return launch(dependent_kernel, Launch{1, kWarp, 0, nullptr, true}, out, bug);
}

int launch_sized(int blocks, int threads, size_t shared_bytes) {
  const Launch how{static_cast<unsigned>(blocks), static_cast<unsigned>(threads), shared_bytes, nullptr};
  return launch(sized_kernel, how);
}

}  // namespace planted
