// SPDX-License-Identifier: Apache-2.0
// The emulated machine: a grid of blocks of warps of threads, which take turns on one OS thread.
//
// A thread runs until it has to wait for others (a barrier, a shuffle, an mbarrier), and then switches
// directly to a thread that can run. Sanitizers instrument kernels. Kernels only read the data here; only the
// emulation's own files, which ThreadSanitizer does not instrument, write it.
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
  const char* waits_at = nullptr;  // null: the thread does not wait
  Site site;
  WarpRequest request;
  uint64_t result = 0;
  std::vector<Piece> copies;  // cp.async copies before the arrival that covers them
  // Helper contexts of races.cpp: the order of the last fence, and the order that atomics have read since.
  void* fenced = nullptr;
  void* observed = nullptr;
};

struct Warp {
  std::array<Thread*, 32> lanes{};
  unsigned ready = 0;                 // lanes that can run
  unsigned waiting = 0;               // lanes at a collective
  unsigned exited = 0;                // lanes that have exited or never existed
  std::array<char, 32> order_keys{};  // for races: one per lowest lane of a mask
};

struct BlockBarrier {
  unsigned arrived = 0;
  const char* name = nullptr;  // the instruction
  Site site;
  int count = 0;  // true predicates
  int all = 1, any = 0;
  struct {
    int count, all, any;
  } result{};  // result of the last completed barrier
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
  bool probe;  // ends where the first thread waits for earlier kernels
};

// Runs a launch, or throws a Failure.
void run(const Job& job);
// Runs a probe, and returns the bytes of static shared memory that the kernel declared, as ptxas lays them
// out: with the padding before dynamic shared memory.
size_t static_shared_of(const Job& probe);

// The running thread; null while the host runs. `grid_dim` and `block_dim` belong to the launch.
extern Thread* current;
extern dim3 grid_dim, block_dim;

void note_wait_for_earlier_kernels();
// Ends a probe.
void end_of_declarations();

// ---- For the emulation's own files, on behalf of the current thread
//
// Lets other threads run until one of them wakes this thread.
void wait_here(const char* at, const Site& site);
void wake(Thread& thread);
// Lets another thread go first now and then, if the order is free.
void maybe_yield();
Random& random();
// Returns a thread's place as text: "block 0, thread 5".
std::string place_of(const Thread& thread);

}  // namespace microspec::emulation
