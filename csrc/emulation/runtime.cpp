// SPDX-License-Identifier: Apache-2.0
#include "runtime.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <utility>

#include "races.h"

namespace microspec::emulation {

Settings settings;
Thread* current = nullptr;
dim3 grid_dim, block_dim;

namespace {

constexpr unsigned kWarp = 32;

constexpr unsigned ceil_div(unsigned a, unsigned b) { return (a + b - 1) / b; }
// The key that orders a launch's threads before the host's next step.
char launch_key = 0;

// Warps in the order in which they became ready. The queue is never reallocated, because threads that
// ThreadSanitizer takes for unordered share it.
class ReadyQueue {
 public:
  explicit ReadyQueue(size_t most) : slots_(most) {}

  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }
  Warp*& operator[](size_t index) { return slots_[(first_ + index) % slots_.size()]; }
  void push(Warp* warp) { (*this)[count_++] = warp; }
  void pop() {
    first_ = (first_ + 1) % slots_.size();
    --count_;
  }

 private:
  std::vector<Warp*> slots_;
  size_t first_ = 0, count_ = 0;
};

// One launch: its blocks, the threads that can run, and the failure.
class Scheduler {
 public:
  explicit Scheduler(const Job& job)
      : job_(job),
        ready_(settings.resident_blocks * ceil_div(job.threads, kWarp)),
        random(job.probe ? 0 : settings.seed++) {
    host_.race_context = races::this_context();
  }

  void run();
  // Runs the first thread until it has declared its shared memory.
  size_t probe();
  void end_probe() {
    if (!job_.probe) return;
    races::release(&launch_key);
    back_to_host();
  }
  void wake(Thread& thread) {
    if (!thread.warp->ready) ready_.push(thread.warp);
    thread.warp->ready |= 1u << thread.lane;
  }
  // Switches from the current thread to another, or to the host if no thread can run.
  void leave();
  [[noreturn]] void abandon(Kind kind, std::string message) {
    failure_.emplace(kind, std::move(message));
    back_to_host();
  }
  static void thread_main();

 private:
  // Removes and returns a thread that can run; null if there is none.
  Thread* pick();
  void start_block();
  void on_exit(Thread& thread);
  void retire(Block* block);
  // Called if no thread can run: lets a copy arrive, or throws.
  void move_on();
  [[noreturn]] void back_to_host();

  const Job& job_;
  Fiber host_;
  ReadyQueue ready_;
  std::vector<std::unique_ptr<Block>> resident_;
  Block* finished_ = nullptr;
  unsigned started_ = 0;
  std::optional<Failure> failure_;

 public:
  Random random;
};

Scheduler* scheduler = nullptr;

Thread* Scheduler::pick() {
  if (ready_.empty()) return nullptr;
  const bool shuffled = settings.order == Order::shuffled;
  // Mostly continue with the same warp, so that one warp gets far ahead of the others. A missing barrier then
  // shows.
  if (shuffled && random.one_in(4)) std::swap(ready_[0], ready_[random.below(ready_.size())]);
  Warp& warp = *ready_[0];
  // Take the first lane that can run, starting from a random lane.
  const int from = shuffled ? static_cast<int>(random.below(kWarp)) : 0;
  const int lane = (std::countr_zero(std::rotr(warp.ready, from)) + from) % static_cast<int>(kWarp);
  warp.ready &= ~(1u << lane);
  if (!warp.ready) ready_.pop();
  return warp.lanes[lane];
}

void Scheduler::leave() {
  Thread& self = *current;
  Thread* next = pick();
  if (next == &self) return;
  current = next;
  Fiber::switch_to(self.fiber, next ? next->fiber : host_);
}

void Scheduler::back_to_host() {
  Thread& self = *current;
  current = nullptr;
  Fiber::switch_to(self.fiber, host_);
  std::abort();  // nothing switches to a thread that is over
}

void Scheduler::thread_main() {
  Fiber::arrived(current->fiber);
  scheduler->job_.invoke(scheduler->job_.arguments);
  scheduler->on_exit(*current);
  scheduler->back_to_host();
}

void Scheduler::on_exit(Thread& thread) {
  const Site nowhere;
  Block& block = *thread.block;
  if (job_.probe) {
    fail(Kind::missed_wait, "a kernel's first thread ended without wait_for_earlier_kernels", nowhere);
  }
  if (job_.dependent && !thread.waited_for_earlier_kernels) {
    fail(Kind::missed_wait, "a dependent kernel's thread ended without wait_for_earlier_kernels", nowhere);
  }
  if (!thread.copies.empty())
    fail(Kind::mbarrier, "the thread ended with a cp.async that no arrival follows", nowhere);
  thread.exited = true;
  thread.warp->exited |= 1u << thread.lane;
  for (unsigned lanes = thread.warp->waiting; lanes; lanes &= lanes - 1) {
    const Thread& other = *thread.warp->lanes[std::countr_zero(lanes)];
    if (other.request.mask >> thread.lane & 1) {
      fail(Kind::wrong_mask,
           "the thread has ended, and " + place_of(other) + " waits for it at " + other.waits_at, other.site);
    }
  }
  if (block.barrier.arrived > 0) {
    fail(Kind::divergent_barrier,
         "the thread has ended, and " + std::to_string(block.barrier.arrived) + " others wait for it at " +
             block.barrier.name,
         block.barrier.site);
  }
  races::finish(thread);
  races::release(&launch_key);
  if (--block.live == 0) finished_ = &block;
}

void Scheduler::start_block() {
  resident_.push_back(std::make_unique<Block>(started_++, job_.threads, job_.shared_bytes, thread_main));
  for (const auto& thread : resident_.back()->threads) wake(*thread);
}

void Scheduler::retire(Block* block) {
  const std::string which = "block " + std::to_string(block->index.x) + ": ";
  if (block->copies.any_under_way())
    throw Failure(Kind::mbarrier, which + "ended before all its copies arrived");
  if (block->shared.is_overrun())
    throw Failure(Kind::shared_memory, which + "wrote beside its shared arrays");
  std::erase_if(resident_, [&](const auto& held) { return held.get() == block; });
  if (started_ < job_.blocks) start_block();
}

void Scheduler::move_on() {
  std::vector<Block*> receiving;
  for (const auto& block : resident_) {
    if (block->copies.any_under_way()) receiving.push_back(block.get());
  }
  if (!receiving.empty()) {
    const bool in_order = settings.order == Order::in_order;
    receiving[in_order ? 0 : random.below(receiving.size())]->copies.deliver_one();
    return;
  }
  std::string who;
  int named = 0;
  for (const auto& block : resident_) {
    for (const auto& thread : block->threads) {
      if (thread->exited || ++named > 8) continue;
      who += "; " + place_of(*thread) + " at " + thread->waits_at + " (" + text_of(thread->site) + ")";
    }
  }
  throw Failure(Kind::deadlock, "no thread can go on: " + std::to_string(named) + " wait" + who);
}

void Scheduler::run() {
  while (started_ < job_.blocks && started_ < static_cast<unsigned>(settings.resident_blocks)) start_block();
  while (!resident_.empty()) {
    Thread* next = pick();
    if (!next) {
      move_on();
      continue;
    }
    current = next;
    Fiber::switch_to(host_, next->fiber);
    current = nullptr;
    if (failure_) throw *failure_;
    if (finished_) retire(std::exchange(finished_, nullptr));
  }
  races::acquire(&launch_key);
  races::end_launch();
}

size_t Scheduler::probe() {
  start_block();
  current = pick();
  Fiber::switch_to(host_, current->fiber);
  current = nullptr;
  if (failure_) throw *failure_;
  const size_t bytes = resident_[0]->shared.static_bytes();
  resident_.clear();
  races::acquire(&launch_key);
  races::end_launch();
  return bytes;
}

}  // namespace

Block::Block(unsigned number, unsigned count, size_t dynamic_bytes, void (*entry)())
    : index{number, 0, 0}, live(count), shared(dynamic_bytes), warps(ceil_div(count, kWarp)), threads(count) {
  for (Warp& warp : warps) warp.exited = ~0u;
  for (unsigned i = 0; i < count; ++i) {
    threads[i] = std::make_unique<Thread>();
    Thread& thread = *threads[i];
    thread.index = {i, 0, 0};
    thread.block = this;
    thread.warp = &warps[i / kWarp];
    thread.lane = static_cast<int>(i % kWarp);
    thread.warp->lanes[i % kWarp] = &thread;
    thread.warp->exited &= ~(1u << thread.lane);
    thread.fiber.start(entry);
    if (races::kDetected) races::start(thread, place_of(thread).c_str());
  }
}

Block::~Block() {
  for (const auto& thread : threads) {
    if (thread->exited) {
      races::end_context(thread->fiber.race_context);
    } else {
      races::finish(*thread);
      races::abandon_context(thread->fiber.race_context);
    }
  }
}

namespace {

// Calls f(scheduler) with the scheduler of a launch.
template <class F>
auto scheduled(const Job& job, F&& f) {
  const races::Unseen unseen;  // hides the host's part: memory that threads used comes and goes
  grid_dim = {job.blocks, 1, 1};
  block_dim = {job.threads, 1, 1};
  Scheduler own(job);
  scheduler = &own;
  const struct Reset {
    ~Reset() {
      current = nullptr;
      scheduler = nullptr;
    }
  } reset;
  return f(own);
}

}  // namespace

void run(const Job& job) {
  scheduled(job, [](Scheduler& own) { own.run(); });
}

size_t static_shared_of(const Job& probe) {
  return scheduled(probe, [](Scheduler& own) { return own.probe(); });
}

void end_of_declarations() { scheduler->end_probe(); }

void wait_here(const char* at, const Site& site) {
  current->waits_at = at;
  current->site = site;
  scheduler->leave();
  current->waits_at = nullptr;
}

void wake(Thread& thread) { scheduler->wake(thread); }

void maybe_yield() {
  if (settings.order == Order::in_order || !scheduler->random.one_in(4)) return;
  scheduler->wake(*current);
  scheduler->leave();
}

void note_wait_for_earlier_kernels() { current->waited_for_earlier_kernels = true; }

Random& random() { return scheduler->random; }

std::string place_of(const Thread& thread) {
  return "block " + std::to_string(thread.block->index.x) + ", thread " + std::to_string(thread.index.x);
}

std::string text_of(const Site& site) {
  const std::string path = site.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line());
}

void fail(Kind kind, const std::string& what, const Site& site) {
  const std::string where = site.line() ? " (" + text_of(site) + ")" : "";
  if (!current) throw Failure(kind, what + where);
  scheduler->abandon(kind, place_of(*current) + ": " + what + where);
}

}  // namespace microspec::emulation
