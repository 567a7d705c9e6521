// SPDX-License-Identifier: Apache-2.0
// Host functions of the kernels: each launches one and returns launch()'s error. The caller owns the
// arrays; `bug` is 0 for the correct kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace planted {

// The bugs, by kernel. module.cpp has the test's names for them.
enum Bug : int {
  kNone,
  // tile_sums
  kNoBarrierInLoop,
  kBarrierOfSomeThreads,
  kTwoBarriers,
  // copied_sums
  kNoWait,
  kMoreBytesThanAnnounced,
  kFewerBytesThanAnnounced,
  kUninitialised,
  kOddBytes,
  kMisalignedCopy,
  kNoArrival,
  kPastTheSource,
  // grid_sum
  kNoFence,
  kNoBarrierBeforeTicket,
  kNoFenceAfterTicket,
  kPlainReset,
  // warp_sums
  kMaskWithoutCaller,
  kExitedLane,
  kOtherInstruction,
  kLaneOutsideMask,
  kNoSyncWarp,
  kWaitForNobody,
  // copy_rows
  kMisalignedLoad,
  kMisalignedAccess,
  kRowPastTheEnd,
  kSharedOverrun,
  kTooMuchShared,
  // dependent
  kMissedWait,
};

// out[i] = sum over the tiles of in[tile * 64 + (i + 1) % 64].
int tile_sums(float* out, const float* in, int tiles, int bug);
// The same sums with asynchronous copies: bulk copies from sm_90 on, else cp.async.
int copied_sums(float* out, const float* in, int tiles, int bug);
// out[0] = sum of in[0 .. 32 * blocks). The block with the last ticket computes it and clears the ticket.
int grid_sum(int* out, int* partials, unsigned* ticket, const int* in, int blocks, int bug);
// out[i] = sum of in[0 .. 32) by shuffles, then by shared memory.
int warp_sums(int* out, const int* in, int bug);
// Rows of 16 floats.
int copy_rows(float* out, const float* in, const int* rows, int count, int bug);
int dependent(int* out, int bug);
// A launch with these sizes of a kernel for at most 96 threads.
int launch_sized(int blocks, int threads, size_t shared_bytes);

// ---- One instruction over arrays, for comparison with numpy.
// d[16, 8] += a[16, 16] b[16, 8] of bf16 or fp16, by the lane layout that ptx.cuh documents.
int mma(float* d, const uint16_t* a, const uint16_t* b, bool bf16);
// out: [operation, 32], in the order of the instructions in instructions.cu.
int warp_operations(int* out, const int* in, unsigned mask);
int f16_to_float(float* out, const uint16_t* in, int count);
int float_to_f16(uint16_t* out, const float* in, int count);
int float_to_bf16(uint16_t* out, const float* in, int count);
int e4m3_to_f16(uint16_t* out, const uint8_t* in, int count);
int float_to_e4m3(uint8_t* out, const float* in, int count);
// out: [operation, threads], as in a block of `threads` threads.
int block_operations(int* out, const int* in, int threads);
int atomics(unsigned* cells, int threads);

}  // namespace planted
