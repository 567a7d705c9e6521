// SPDX-License-Identifier: Apache-2.0
// Serves the CPU kernels to tests/arm_ops.py from a process for Arm, under an emulator, without torch.
//
// `driver isa` prints the chosen instruction set. `driver` answers calls: it reads an op's number,
// integers, floats and arrays from stdin, and writes the op's output arrays to stdout. Every array ends
// before an inaccessible page, and inputs are read-only. The driver checks the memory before the output
// arrays afterwards.
#include <sys/mman.h>
#include <torch/csrc/stable/c/shim.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "gather/gather.h"
#include "head/args.h"
#include "head/cpu/kernels.h"
#include "head/sample_args.h"
#include "tree/tree.h"
#include "vocab/learn.h"
#include "vocab/vocab.h"

// The parts of torch that common/parallel.h uses, with two threads.
extern "C" AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = 2;
  return 0;
}
extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body,
                                             void* context) {
  std::vector<std::thread> threads;
  for (int64_t i = begin; i < end; ++i) threads.emplace_back(body, i, i + 1, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

namespace microspec {

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "driver: %s\n", what);
  std::exit(1);
}

void receive(void* target, size_t size) {
  if (std::fread(target, 1, size, stdin) != size) fail("the call ends early");
}
int64_t receive_integer() {
  int64_t value;
  receive(&value, sizeof value);
  return value;
}
float receive_float() {
  float value;
  receive(&value, sizeof value);
  return value;
}

class Array {
 public:
  enum Use { kRead, kWritten };

  // The input has the array's size in bytes, or -1 for none, and its bytes.
  explicit Array(Use use) : use_(use) {
    const int64_t size = receive_integer();
    if (size < 0) return;
    size_ = static_cast<size_t>(size);
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    accessible_ = (size_ + page - 1) / page * page;
    mapped_ = accessible_ + page;
    void* memory = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("no memory");
    memory_ = static_cast<unsigned char*>(memory);
    std::memset(memory_, kUntouched, accessible_ - size_);
    data_ = memory_ + accessible_ - size_;
    receive(data_, size_);
    if (mprotect(memory_ + accessible_, page, PROT_NONE) != 0) fail("mprotect failed");
    if (use == kRead && accessible_ && mprotect(memory_, accessible_, PROT_READ) != 0)
      fail("mprotect failed");
  }
  ~Array() {
    if (memory_) munmap(memory_, mapped_);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  void send() const {
    if (!memory_) return;
    for (const unsigned char* p = memory_; p < data_; ++p) {
      if (*p != kUntouched) fail("something was written before an array");
    }
    std::fwrite(data_, 1, size_, stdout);
  }

 private:
  static constexpr unsigned char kUntouched = 0xa5;

  Use use_;
  size_t size_ = 0, accessible_ = 0, mapped_ = 0;
  unsigned char* memory_ = nullptr;
  void* data_ = nullptr;
};

DType receive_type() { return static_cast<DType>(receive_integer()); }

// Receives a head's integers and floats; its tensors come later.
HeadArgs receive_head(int64_t& k) {
  HeadArgs args{};
  args.packed = receive_integer();
  args.long_group_ids = receive_integer();
  args.one_group = receive_integer();
  args.rows = receive_integer();
  args.dim = receive_integer();
  args.groups = receive_integer();
  args.capacity = receive_integer();
  args.hidden_row_stride = receive_integer();
  args.weight_row_stride = receive_integer();
  args.weight_group_stride = receive_integer();
  args.hidden_type = receive_type();
  args.weight_type = receive_type();
  args.bias_type = receive_type();
  k = receive_integer();
  return args;
}

// The tensors that a head reads, in the order in which they come.
struct HeadTensors {
  Array hidden{Array::kRead}, weight{Array::kRead}, active_ids{Array::kRead}, group_ids{Array::kRead};
  Array weight_scale{Array::kRead}, bias{Array::kRead};

  void give(HeadArgs& args) const {
    args.hidden = hidden.as<void>();
    args.weight = weight.as<void>();
    args.active_ids = active_ids.as<int32_t>();
    args.group_ids = group_ids.as<void>();
    if (is_4bit(args.weight_type)) {
      args.group_scale = weight_scale.as<void>();
    } else {
      args.weight_scale = weight_scale.as<float>();
    }
    args.bias = bias.as<void>();
  }
};

// k = 0 selects sparse_logits.
void serve_head() {
  int64_t k = 0;
  HeadArgs args = receive_head(k);
  args.logit_scale = receive_float();
  args.softcap = receive_float();
  const Array logits(Array::kWritten), token_ids(Array::kWritten), logsumexp(Array::kWritten);
  const HeadTensors tensors;
  tensors.give(args);
  if (k > 0) {
    run_sparse_head(args, k, logits.as<float>(), token_ids.as<int64_t>(), logsumexp.as<float>());
  } else {
    run_sparse_logits(args, logits.as<float>());
  }
  logits.send();
  token_ids.send();
  logsumexp.send();
}

void serve_sample() {
  int64_t k = 0;
  HeadArgs args = receive_head(k);
  SampleArgs sample{};
  sample.long_logit_rows = receive_integer();
  sample.logits_rows = receive_integer();
  sample.logits_columns = receive_integer();
  sample.logits_row_stride = receive_integer();
  sample.logits_type = receive_type();
  args.logit_scale = receive_float();
  args.softcap = receive_float();
  const Array tokens(Array::kWritten), log_probs(Array::kWritten), token_logits(Array::kWritten);
  const HeadTensors tensors;
  tensors.give(args);
  const Array temperatures(Array::kRead), seeds(Array::kRead), positions(Array::kRead);
  const Array row_tokens(Array::kRead), logit_rows(Array::kRead);
  sample.tokens = tokens.as<int64_t>();
  sample.log_probs = log_probs.as<float>();
  sample.token_logits = token_logits.as<void>();
  sample.temperatures = temperatures.as<float>();
  sample.seeds = seeds.as<int64_t>();
  sample.positions = positions.as<int64_t>();
  sample.row_tokens = row_tokens.as<int64_t>();
  sample.logit_rows = logit_rows.as<void>();
  sample.unit = draw_unit(args.capacity);
  run_sparse_sample(args, sample);
  tokens.send();
  log_probs.send();
  token_logits.send();
}

void serve_gather() {
  GatherArgs args{};
  const int64_t slots = receive_integer();
  args.dim = receive_integer();
  args.weight_row_stride = receive_integer();
  args.slab_type = receive_type();
  args.weight_type = receive_type();
  const Array slab(Array::kWritten), slab_ids(Array::kWritten), slab_scale(Array::kWritten);
  const Array weight(Array::kRead), active_ids(Array::kRead), weight_scale(Array::kRead);
  args.slab = slab.as<void>();
  args.slab_ids = slab_ids.as<int32_t>();
  args.weight = weight.as<void>();
  args.active_ids = active_ids.as<int32_t>();
  if (is_4bit(args.slab_type)) {
    args.slab_group_scale = slab_scale.as<void>();
    args.weight_group_scale = weight_scale.as<void>();
  } else {
    args.slab_scale = slab_scale.as<float>();
    args.weight_scale = weight_scale.as<float>();
  }
  gather_slots(args, 0, slots);
  slab.send();
  slab_ids.send();
  slab_scale.send();
}

// One group's tokens, -1 where there is none.
void serve_vocab() {
  VocabGroup group{};
  group.capacity = receive_integer();
  group.vocab_size = receive_integer();
  group.clock_advance = receive_integer();
  const Array active_ids(Array::kWritten), slot_stamps(Array::kWritten), token_slots(Array::kWritten);
  const Array clock(Array::kWritten), tokens(Array::kRead);
  group.active_ids = active_ids.as<int32_t>();
  group.slot_stamps = slot_stamps.as<int64_t>();
  group.token_slots = token_slots.as<int32_t>();
  group.clock = clock.as<int64_t>();
  VocabUpdate update(group);
  for (int64_t i = group.clock_advance - 1; i >= 0 && !update.full(); --i) {
    const int64_t token = tokens.as<int64_t>()[i];
    if (token >= 0) update.see(token, i);
  }
  update.place_newcomers();
  active_ids.send();
  slot_stamps.send();
  token_slots.send();
  clock.send();
}

void serve_count() {
  CountArgs args{};
  args.long_tokens = receive_integer();
  args.long_requests = receive_integer();
  CountTables& tables = args.tables;
  tables.long_lists = receive_integer();
  tables.requests = receive_integer();
  tables.lists = receive_integer();
  tables.vocab_size = receive_integer();
  args.count = receive_integer();
  const Array text_counts(Array::kWritten), seen(Array::kWritten), total_counts(Array::kWritten);
  const Array tokens(Array::kRead), token_requests(Array::kRead), request_lists(Array::kRead);
  tables.text_counts = text_counts.as<int32_t>();
  tables.total_counts = total_counts.as<int32_t>();
  tables.seen = seen.as<int32_t>();
  tables.request_lists = request_lists.as<void>();
  args.tokens = tokens.as<void>();
  args.token_requests = token_requests.as<void>();
  count_cpu(args);
  text_counts.send();
  seen.send();
  total_counts.send();
}

void serve_refill() {
  RefillArgs args{};
  args.long_lists = receive_integer();
  args.reset = receive_integer();
  args.groups = receive_integer();
  args.capacity = receive_integer();
  args.vocab_size = receive_integer();
  args.lists = receive_integer();
  args.pinned = receive_integer();
  const Array active_ids(Array::kWritten), slot_stamps(Array::kWritten), token_slots(Array::kWritten);
  const Array clock(Array::kWritten);
  const Array text_counts(Array::kRead), total_counts(Array::kRead), token_ranks(Array::kRead);
  const Array group_lists(Array::kRead);
  args.active_ids = active_ids.as<int32_t>();
  args.slot_stamps = slot_stamps.as<int64_t>();
  args.token_slots = token_slots.as<int32_t>();
  args.clock = clock.as<int64_t>();
  args.text_counts = text_counts.as<int32_t>();
  args.total_counts = total_counts.as<int32_t>();
  args.token_ranks = token_ranks.as<int32_t>();
  args.group_lists = group_lists.as<void>();
  refill_cpu(args);
  active_ids.send();
  slot_stamps.send();
  token_slots.send();
  clock.send();
}

Pool pool_at(const Array& tokens, const Array& parents, const Array& costs) {
  Pool pool{};
  pool.tokens = tokens.as<int64_t>();
  pool.parents = parents.as<int64_t>();
  pool.costs = costs.as<float>();
  return pool;
}

void serve_grow() {
  TreeGrowArgs args{};
  const int64_t texts = receive_integer(), places = receive_integer();
  args.frontier_width = receive_integer();
  args.answers = receive_integer();
  args.begin = receive_integer();
  args.width = receive_integer();
  const Array pool_tokens(Array::kWritten), pool_parents(Array::kWritten), pool_costs(Array::kWritten);
  const Array next(Array::kWritten), next_tokens(Array::kWritten), next_rows(Array::kWritten);
  const Array logits(Array::kRead), token_ids(Array::kRead), logsumexp(Array::kRead);
  const Array frontier(Array::kRead);
  args.pool = pool_at(pool_tokens, pool_parents, pool_costs);
  args.pool.texts = texts;
  args.pool.places = places;
  args.frontier = frontier.as<int64_t>();
  args.logits = logits.as<float>();
  args.token_ids = token_ids.as<int64_t>();
  args.logsumexp = logsumexp.as<float>();
  args.next = next.as<int64_t>();
  args.next_tokens = next_tokens.as<int64_t>();
  args.next_rows = next_rows.as<int64_t>();
  tree_grow_cpu(args);
  for (const Array* array : {&pool_tokens, &pool_parents, &pool_costs, &next, &next_tokens, &next_rows}) {
    array->send();
  }
}

void serve_cut() {
  TreeCutArgs args{};
  const int64_t texts = receive_integer(), places = receive_integer();
  args.nodes = receive_integer();
  const Array tokens(Array::kWritten), parents(Array::kWritten), depths(Array::kWritten);
  const Array ancestor_mask(Array::kWritten);
  const Array roots(Array::kRead), pool_tokens(Array::kRead), pool_parents(Array::kRead);
  const Array pool_costs(Array::kRead);
  args.pool = pool_at(pool_tokens, pool_parents, pool_costs);
  args.pool.texts = texts;
  args.pool.places = places;
  args.roots = roots.as<int64_t>();
  args.tokens = tokens.as<int64_t>();
  args.parents = parents.as<int64_t>();
  args.depths = depths.as<int64_t>();
  args.ancestor_mask = ancestor_mask.as<bool>();
  tree_cut_cpu(args);
  for (const Array* array : {&tokens, &parents, &depths, &ancestor_mask}) array->send();
}

void serve_accept() {
  TreeAcceptArgs args{};
  args.texts = receive_integer();
  args.nodes = receive_integer();
  args.depth = receive_integer();
  args.length = receive_integer();
  const Array paths(Array::kWritten), path_tokens(Array::kWritten), node_tokens(Array::kWritten);
  const Array counts(Array::kWritten), leaves(Array::kWritten);
  const Array tokens(Array::kRead), parents(Array::kRead), chosen(Array::kRead);
  args.tokens = tokens.as<int64_t>();
  args.parents = parents.as<int64_t>();
  args.chosen = chosen.as<int64_t>();
  args.paths = paths.as<int64_t>();
  args.path_tokens = path_tokens.as<int64_t>();
  args.node_tokens = node_tokens.as<int64_t>();
  args.counts = counts.as<int64_t>();
  args.leaves = leaves.as<int64_t>();
  tree_accept_cpu(args);
  for (const Array* array : {&paths, &path_tokens, &node_tokens, &counts, &leaves}) array->send();
}

}  // namespace
}  // namespace microspec

int main(int argc, char** argv) {
  try {
    if (argc == 2 && std::string(argv[1]) == "isa") {
      std::puts(microspec::instruction_set().name);
      return 0;
    }
    for (int64_t op; std::fread(&op, sizeof op, 1, stdin) == 1;) {
      switch (op) {
        case 0: microspec::serve_head(); break;
        case 1: microspec::serve_gather(); break;
        case 2: microspec::serve_vocab(); break;
        case 3: microspec::serve_count(); break;
        case 4: microspec::serve_refill(); break;
        case 5: microspec::serve_sample(); break;
        case 6: microspec::serve_grow(); break;
        case 7: microspec::serve_cut(); break;
        default: microspec::serve_accept();
      }
      std::fflush(stdout);
    }
    return 0;
  } catch (const std::exception& error) {
    microspec::fail(error.what());
  }
}
