// SPDX-License-Identifier: Apache-2.0
// The CPU head sorts rows into groups, runs panels over the thread pool, and selects.
//
// Bytes of one call: the active rows once (K * D elements, the floor), M * D activations, and M * K logits
// that stay in L2 until the selection reads them.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "common/parallel.h"
#include "head/args.h"
#include "kernels.h"
#include "sample_cpu.h"

namespace microspec {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// The least work worth waking a thread for: about 10 us of reading.
constexpr int64_t kBytesPerThread = int64_t{1} << 17;

// The work of one group: its occupied slots times the rows of hidden that belong to it.
struct GroupWork {
  std::vector<int32_t> slots;  // occupied slots, ascending
  std::vector<int32_t> ids;    // their token ids
  std::vector<int64_t> rows;   // rows of hidden
  int64_t first_hidden;        // the group's first row among the packed activations
  int64_t panel_rows;          // rows of the weight that a thread takes at a time
  const char* weight;          // base of the rows that `index` counts
  const float* scale;          // base of the rows' scales that `index` counts, or null
  const char* group_scale;     // base of the groups' scales of 4-bit rows that `index` counts, or null
  const int32_t* index;        // slots if the weight is packed, else ids

  int64_t count() const { return static_cast<int64_t>(slots.size()); }
};

template <class Source, class Target>
void convert_row(const Source* source, int64_t count, Target* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = static_cast<Target>(static_cast<float>(source[i]));
}

// One call: the groups' work, the packed activations, and the kernel that multiplies them.
class Head {
 public:
  explicit Head(const HeadArgs& args)
      : args_(args),
        kernel_(instruction_set().head(args.weight_type, args.hidden_type)),
        groups_(args.groups) {
    for (int64_t row = 0; row < args.rows; ++row) {
      const int64_t group = args.group_of(row);
      if (group >= 0) groups_[group].rows.push_back(row);
    }
    int64_t packed_rows = 0;
    for (int64_t g = 0; g < args.groups; ++g) {
      GroupWork& work = groups_[g];
      work.first_hidden = packed_rows;
      const int64_t rows = static_cast<int64_t>(work.rows.size());
      packed_rows += kernel_.arranged_rows ? kernel_.arranged_rows(rows) : rows;
      if (work.rows.empty()) continue;
      list_occupied(work, args.active_ids + g * args.capacity);
      // Make at least four panels a thread, so that the threads finish at about the same time.
      const int64_t share = work.count() / (4 * thread_count()) / kPanelUnit * kPanelUnit;
      work.panel_rows = std::clamp(share, kPanelUnit, max_panel_rows(args.weight_type));
      const int64_t group_bytes = args.weight_group_stride * element_size(args.weight_type);
      work.weight = static_cast<const char*>(args.weight) + (args.packed ? g * group_bytes : 0);
      work.scale = args.weight_scale;
      if (args.weight_scale && args.packed) work.scale += g * args.capacity;
      work.group_scale = static_cast<const char*>(args.group_scale);
      if (args.group_scale && args.packed) work.group_scale += g * args.capacity * scale_bytes(args.dim);
      work.index = args.packed ? work.slots.data() : work.ids.data();
    }
    pack_hidden(packed_rows);
    if (kernel_.arrange) arrange_hidden();
  }

  // Writes logits[row * capacity + column(work, i)] for each row and its i-th occupied slot.
  template <class Column>
  void project(float* logits, const Column& column) const {
    for (const GroupWork& work : groups_) {
      if (work.rows.empty()) continue;
      const int64_t panels = (work.count() + work.panel_rows - 1) / work.panel_rows;
      const int64_t panel_bytes = work.panel_rows * row_bytes(args_.weight_type, args_.dim);
      const int64_t grain = std::max<int64_t>(1, kBytesPerThread / std::max<int64_t>(1, panel_bytes));
      parallel_for(panels, grain, [&](int64_t begin, int64_t end) {
        std::vector<float> dots(work.panel_rows * work.rows.size());
        for (int64_t panel = begin; panel < end; ++panel) {
          run_panel(work, panel, dots.data());
          store(work, panel, dots.data(), logits, column);
        }
      });
    }
  }

  const std::vector<GroupWork>& groups() const { return groups_; }

 private:
  void list_occupied(GroupWork& work, const int32_t* active_ids) const {
    work.slots.resize(args_.capacity);
    work.ids.resize(args_.capacity);
    int64_t count = 0;
    for (int64_t slot = 0; slot < args_.capacity; ++slot) {
      work.slots[count] = static_cast<int32_t>(slot);
      work.ids[count] = active_ids[slot];
      count += active_ids[slot] >= 0;
    }
    work.slots.resize(count);
    work.ids.resize(count);
  }

  // Packs each group's activations together, in the kernel's type, zero-padded.
  void pack_hidden(int64_t packed_rows) {
    hidden_rows_ = packed_rows;
    hidden_stride_ = (args_.dim + kHiddenPadding - 1) / kHiddenPadding * kHiddenPadding;
    const int64_t size = element_size(kernel_.hidden_type);
    hidden_.reset(new char[packed_rows * hidden_stride_ * size]);
    if (args_.dim == 0) return;  // nothing to copy, and the source may be null
    for (const GroupWork& work : groups_) {
      for (size_t i = 0; i < work.rows.size(); ++i) {
        char* target = hidden_.get() + (work.first_hidden + i) * hidden_stride_ * size;
        const int64_t source = work.rows[i] * args_.hidden_row_stride;
        if (args_.hidden_type == kernel_.hidden_type) {
          std::memcpy(target, static_cast<const char*>(args_.hidden) + source * size, args_.dim * size);
        } else if (args_.hidden_type == DType::f16) {
          convert_row(static_cast<const c10::Half*>(args_.hidden) + source, args_.dim,
                      reinterpret_cast<float*>(target));
        } else {
          convert_row(static_cast<const c10::BFloat16*>(args_.hidden) + source, args_.dim,
                      reinterpret_cast<float*>(target));
        }
        std::memset(target + args_.dim * size, 0, (hidden_stride_ - args_.dim) * size);
      }
    }
  }

  void arrange_hidden() {
    const int64_t bytes = row_bytes(kernel_.hidden_type, hidden_stride_);
    std::unique_ptr<char[]> arranged(new char[hidden_rows_ * bytes]);
    for (const GroupWork& work : groups_) {
      const int64_t offset = work.first_hidden * bytes;
      if (!work.rows.empty()) {
        kernel_.arrange(hidden_.get() + offset, static_cast<int64_t>(work.rows.size()), hidden_stride_,
                        arranged.get() + offset);
      }
    }
    hidden_ = std::move(arranged);
  }

  void run_panel(const GroupWork& work, int64_t index, float* dots) const {
    const char* rows[kMaxPanelRows];
    const int64_t first = index * work.panel_rows;
    const int64_t count = std::min(work.panel_rows, work.count() - first);
    const int64_t stride = args_.weight_row_stride * element_size(args_.weight_type);
    const void* scales[kMaxPanelRows];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = work.index[first + r];
      rows[r] = work.weight + row * stride;
      if (work.group_scale) scales[r] = work.group_scale + row * scale_bytes(args_.dim);
    }
    const char* hidden =
        hidden_.get() + work.first_hidden * hidden_stride_ * element_size(kernel_.hidden_type);
    kernel_.panel({rows, count, hidden, static_cast<int64_t>(work.rows.size()), hidden_stride_, args_.dim,
                   dots, work.group_scale ? scales : nullptr});
  }

  template <class Column>
  void store(const GroupWork& work, int64_t index, const float* dots, float* logits,
             const Column& column) const {
    const int64_t first = index * work.panel_rows;
    const int64_t count = std::min(work.panel_rows, work.count() - first);
    const int64_t hidden_count = static_cast<int64_t>(work.rows.size());
    float scales[kMaxPanelRows], biases[kMaxPanelRows];
    for (int64_t r = 0; r < count; ++r) {
      scales[r] = work.scale ? work.scale[work.index[first + r]] : 1.0f;
      biases[r] = args_.bias ? bias_of(work.ids[first + r]) : 0.0f;
    }
    // Keep local copies: the compiler would reread the members after each store of a float.
    const float logit_scale = args_.logit_scale, softcap = args_.softcap;
    // Write one row of logits after the other. Neighbours of a column are `capacity` floats apart, often a
    // multiple of L1's 4 KB: a dozen of them would evict each other.
    for (int64_t m = 0; m < hidden_count; ++m) {
      float* target = logits + work.rows[m] * args_.capacity;
      for (int64_t r = 0; r < count; ++r) {
        target[column(work, first + r)] = logit_scale * (dots[r * hidden_count + m] * scales[r] + biases[r]);
      }
      for (int64_t r = 0; softcap > 0.0f && r < count; ++r) {
        float& z = target[column(work, first + r)];
        z = softcap * std::tanh(z / softcap);
      }
    }
  }

  float bias_of(int32_t id) const {
    switch (args_.bias_type) {
      case DType::f32: return static_cast<const float*>(args_.bias)[id];
      case DType::f16: return static_cast<const c10::Half*>(args_.bias)[id];
      case DType::bf16: return static_cast<const c10::BFloat16*>(args_.bias)[id];
      default: __builtin_trap();  // the op's checks admit no other type
    }
  }

  HeadArgs args_;
  HeadKernel kernel_;
  std::vector<GroupWork> groups_;
  std::unique_ptr<char[]> hidden_;
  int64_t hidden_rows_ = 0;
  int64_t hidden_stride_ = 0;
};

}  // namespace

void run_sparse_head(const HeadArgs& args, int64_t k, float* logits, int64_t* token_ids, float* logsumexp) {
  const Head head(args);
  const std::unique_ptr<float[]> scores(new float[args.rows * args.capacity]);
  head.project(scores.get(), [](const GroupWork&, int64_t i) { return i; });
  parallel_for(args.rows, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, args.capacity)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t group = args.group_of(row);
                   const auto* work = group >= 0 ? &head.groups()[group] : nullptr;  // null: padding
                   instruction_set().select(scores.get() + row * args.capacity,
                                            work ? work->ids.data() : nullptr, work ? work->count() : 0, k,
                                            logits + row * k, token_ids + row * k, logsumexp + row);
                 }
               });
}

void run_sparse_logits(const HeadArgs& args, float* logits) {
  std::fill(logits, logits + args.rows * args.capacity, -kInfinity);
  Head(args).project(logits, [](const GroupWork& work, int64_t i) { return work.slots[i]; });
}

void run_sparse_sample(const HeadArgs& args, const SampleArgs& sample) {
  const Head head(args);
  const std::unique_ptr<float[]> scores(new float[args.rows * args.capacity]);
  head.project(scores.get(), [](const GroupWork&, int64_t i) { return i; });
  const int64_t row_elements = args.capacity + sample.logits_columns;
  parallel_for(args.rows, std::max<int64_t>(1, 8192 / std::max<int64_t>(1, row_elements)),
               [&](int64_t begin, int64_t end) {
                 const std::unique_ptr<float[]> terms(new float[args.capacity]);
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t group = args.group_of(row);
                   const auto* work = group >= 0 ? &head.groups()[group] : nullptr;  // null: padding
                   sample_row(sample, row, scores.get() + row * args.capacity,
                              work ? work->ids.data() : nullptr, work ? work->count() : 0, terms.get());
                 }
               });
}

}  // namespace microspec
