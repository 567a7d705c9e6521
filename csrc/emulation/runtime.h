// SPDX-License-Identifier: Apache-2.0
// The emulated machine: a grid of blocks of warps of threads, which take turns on one OS thread.
//
// A thread runs until it has to wait for others (a barrier, a shuffle, an mbarrier) and then switches
// straight to one that can go on. Kernels, which sanitizers instrument, only read what is here; all
// of it is written by the emulation's own files, which ThreadSanitizer does not instrument.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "async.h"
#include "failure.h"
#include "fiber.h"
#include "settings.h"
#include "shared_memory.h"
#include "vector_types.h"

namespace microspec::emulation {

struct Block;
struct Warp;

// An instruction that the lanes of a mask execute together.
enum class WarpOp : uint8_t {
  none,
  sync,
  ballot,
  any,
  all,
  match_any,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  add,
  min_signed,
  min_unsigned,
  max_signed,
  max_unsigned,
  bit_and,
  bit_or,
  bit_xor,
  mma,
};

struct WarpRequest {
  WarpOp op = WarpOp::none;
  unsigned mask = 0;
  uint64_t value = 0;   // bits of the operand, or the address of a lane's operands
  unsigned source = 0;  // lane or distance of a shuffle
  unsigned width = 32;
};

struct Thread {
  uint3 index{};
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  Fiber fiber;
  bool exited = false;
  bool waited_for_earlier_kernels = false;
  const char* waits_at = nullptr;  // null: it does not wait
  Site site;
  WarpRequest request;
  uint64_t result = 0;
  std::vector<std::pair<void*, const void*>> copies;  // by cp.async, before the arrival that covers them
  // Helpers of races.cpp: what the last fence covered, and what atomics have read since.
  void* fenced = nullptr;
  void* observed = nullptr;
};

struct Warp {
  std::array<Thread*, 32> lanes{};
  unsigned ready = 0;                 // lanes that could go on
  unsigned waiting = 0;               // lanes at a collective
  unsigned exited = 0;                // or never there
  std::array<char, 32> order_keys{};  // for races: one per lowest lane of a mask
};

struct BlockBarrier {
  unsigned arrived = 0;
  const char* name = nullptr;  // the instruction
  Site site;
  int count = 0;  // of true predicates
  int all = 1, any = 0;
  struct {
    int count, all, any;
  } result{};  // of the last barrier that is over
};

struct Block {
  Block(unsigned index, unsigned threads, size_t dynamic_bytes, void (*entry)());
  ~Block();

  uint3 index{};
  unsigned live;  // threads that have not exited
  BlockBarrier barrier;
  SharedMemory shared;
  AsyncCopies copies;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<Thread>> threads;
};

// One launch.
struct Job {
  void (*invoke)(const void* arguments);
  const void* arguments;
  unsigned blocks;
  unsigned threads;
  size_t shared_bytes;
  bool dependent;
};

// Throws a Failure.
void run(const Job& job);

// The thread that runs; null while the host does. `grid_dim` and `block_dim` are the launch's.
extern Thread* current;
extern dim3 grid_dim, block_dim;

void note_wait_for_earlier_kernels();

// ---- For the emulation's own files, on behalf of the current thread.
// Others run until somebody wakes this thread.
void wait_here(const char* at, const Site& site);
void wake(Thread& thread);
// Any other thread may go first; does so now and then, where the order is free.
void maybe_yield();
Random& random();
// "block 0, thread 5"
std::string place_of(const Thread& thread);

}  // namespace microspec::emulation
