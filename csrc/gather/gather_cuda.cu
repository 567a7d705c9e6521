// SPDX-License-Identifier: Apache-2.0
// gather_rows_ on CUDA: the choice of kernel, and the number of blocks.
#include "gather/gather_cuda.h"

#include <algorithm>

#include "gather/copy_kernel.cuh"
#include "gather/quantise_int4_kernel.cuh"
#include "gather/quantise_kernel.cuh"

namespace microspec {

namespace {

using gather::kResident;
using gather::kResident4Bit;
using gather::kThreads;

bool aligned(const GatherArgs& args, int64_t source_bytes, int64_t target_bytes) {
  const int64_t source_size = element_size(args.weight_type);
  return reinterpret_cast<uintptr_t>(args.weight) % source_bytes == 0 &&
         args.weight_row_stride * source_size % source_bytes == 0 &&
         row_bytes(args.weight_type, args.dim) % source_bytes == 0 &&
         reinterpret_cast<uintptr_t>(args.slab) % target_bytes == 0 &&
         row_bytes(args.slab_type, args.dim) % target_bytes == 0;
}

Launch grid(const Device& device, int slots, int64_t resident, size_t shared_bytes, void* stream) {
  const int64_t blocks = std::min<int64_t>(slots, device.sms * resident);
  return {static_cast<unsigned>(blocks), kThreads, shared_bytes, stream, true};
}

template <class Word>
Error copy(const Device& device, const GatherArgs& args, int slots, void* stream) {
  const int64_t size = element_size(args.weight_type), word = sizeof(Word);
  const bool scaled = is_4bit(args.slab_type);
  const Launch how = grid(device, slots, scaled ? kResident4Bit : kResident, 0, stream);
  const auto kernel = args.slab_type == DType::i4       ? gather::copy_rows_kernel<Word, bf16_t>
                      : args.slab_type == DType::f4e2m1 ? gather::copy_rows_kernel<Word, f8e4m3_t>
                                                        : gather::copy_rows_kernel<Word, void>;
  return launch(kernel, how, args, gather::deal(slots, how.blocks),
                static_cast<int>(row_bytes(args.weight_type, args.dim) / word),
                args.weight_row_stride * size / word);
}

template <class Source, class Target>
Error quantise(const Device& device, const GatherArgs& args, int slots, void* stream) {
  // Bytes of shared memory that the system takes for each block.
  constexpr int64_t kSystem = 1024;
  const bool vector = aligned(args, 16, 16 / static_cast<int64_t>(sizeof(Source)));
  const auto kernel = vector ? gather::quantise_rows_kernel<Source, Target, true>
                             : gather::quantise_rows_kernel<Source, Target, false>;
  Loaded loaded;
  if (const Error error = load(kernel, loaded)) return error;
  const int64_t bytes = row_bytes(args.weight_type, args.dim);
  const bool staged = bytes <= loaded.dynamic_shared;
  const int64_t shared_bytes = staged ? bytes : 0;
  const int64_t room = device.sm_shared / (shared_bytes + loaded.static_shared + kSystem);
  Launch how =
      grid(device, slots, std::clamp<int64_t>(room, 1, kResident), static_cast<size_t>(shared_bytes), stream);
  how.least_arch = std::is_same_v<Target, f8e4m3_t> ? kFloat8Arch : 0;
  return launch(kernel, how, args, gather::deal(slots, how.blocks), staged);
}

template <class Source>
Error quantise_int4(const Device& device, const GatherArgs& args, int slots, void* stream) {
  const Launch how = grid(device, slots, kResident4Bit, 0, stream);
  const auto kernel = aligned(args, 16, 4) ? gather::quantise_int4_kernel<Source, true>
                                           : gather::quantise_int4_kernel<Source, false>;
  return launch(kernel, how, args, gather::deal(slots, how.blocks));
}

// Calls f(source) with a value of the weight's element type.
template <class F>
Error with_source(const GatherArgs& args, F&& f) {
  switch (args.weight_type) {
    case DType::f32: return f(float{});
    case DType::f16: return f(f16_t{});
    case DType::bf16: return f(bf16_t{});
    default: return kInvalidValue;
  }
}

Error quantise_to_int4(const Device& device, const GatherArgs& args, int slots, void* stream) {
  return with_source(
      args, [&](auto source) { return quantise_int4<decltype(source)>(device, args, slots, stream); });
}

template <class Target>
Error quantise_to(const Device& device, const GatherArgs& args, int slots, void* stream) {
  return with_source(
      args, [&](auto source) { return quantise<decltype(source), Target>(device, args, slots, stream); });
}

}  // namespace

int run_gather_rows_cuda(const GatherArgs& args, int64_t slots, void* stream) {
  if (slots == 0) return cudaSuccess;
  if (std::max(slots, row_bytes(args.weight_type, args.dim)) > kMostOnCuda) return kInvalidValue;
  Device device;
  if (const Error error = current_device(device)) return error;
  const int count = static_cast<int>(slots);
  if (args.slab_type == args.weight_type) {
    if (aligned(args, 16, 16)) return copy<uint4>(device, args, count, stream);
    if (aligned(args, 4, 4)) return copy<uint32_t>(device, args, count, stream);
    return copy<uint8_t>(device, args, count, stream);
  }
  if (args.slab_type == DType::i4) return quantise_to_int4(device, args, count, stream);
  if (args.slab_type == DType::i8) return quantise_to<int8_t>(device, args, count, stream);
  if (args.slab_type == DType::f8e4m3) return quantise_to<f8e4m3_t>(device, args, count, stream);
  return kInvalidValue;
}

}  // namespace microspec
