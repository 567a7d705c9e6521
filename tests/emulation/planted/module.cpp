// SPDX-License-Identifier: Apache-2.0
// planted: small kernels, correct or with a bug that the emulation must find.
#include "emulation/arrays.h"
#include "emulation/bindings.h"
#include "kernels.h"

#include <pybind11/native_enum.h>

namespace planted {

namespace py = pybind11;
using microspec::emulation::Array;

namespace {

template <class T>
T* data(Array& array) {
  return microspec::emulation::pointer<T>(array);
}

template <class To, class From>
void bind_map(py::module_& module, const char* name, int (*map)(To*, const From*, int)) {
  module.def(name, [map](Array out, Array in) {
    return map(data<To>(out), data<From>(in), static_cast<int>(in.size()));
  });
}

void bind_bugs(py::module_& module) {
  py::native_enum<Bug>(module, "Bug", "enum.IntEnum")
      .value("none", kNone)
      .value("no_barrier_in_loop", kNoBarrierInLoop)
      .value("barrier_of_some_threads", kBarrierOfSomeThreads)
      .value("two_barriers", kTwoBarriers)
      .value("no_wait", kNoWait)
      .value("more_bytes_than_announced", kMoreBytesThanAnnounced)
      .value("fewer_bytes_than_announced", kFewerBytesThanAnnounced)
      .value("uninitialised", kUninitialised)
      .value("odd_bytes", kOddBytes)
      .value("misaligned_copy", kMisalignedCopy)
      .value("no_arrival", kNoArrival)
      .value("past_the_source", kPastTheSource)
      .value("no_fence", kNoFence)
      .value("no_barrier_before_ticket", kNoBarrierBeforeTicket)
      .value("no_fence_after_ticket", kNoFenceAfterTicket)
      .value("plain_reset", kPlainReset)
      .value("mask_without_caller", kMaskWithoutCaller)
      .value("exited_lane", kExitedLane)
      .value("other_instruction", kOtherInstruction)
      .value("lane_outside_mask", kLaneOutsideMask)
      .value("no_sync_warp", kNoSyncWarp)
      .value("wait_for_nobody", kWaitForNobody)
      .value("misaligned_load", kMisalignedLoad)
      .value("misaligned_access", kMisalignedAccess)
      .value("row_past_the_end", kRowPastTheEnd)
      .value("shared_overrun", kSharedOverrun)
      .value("too_much_shared", kTooMuchShared)
      .value("missed_wait", kMissedWait)
      .finalize();
}

void bind_kernels(py::module_& module) {
  module.def("tile_sums", [](Array out, Array in, int tiles, int bug) {
    return tile_sums(data<float>(out), data<float>(in), tiles, bug);
  });
  module.def("copied_sums", [](Array out, Array in, int tiles, int bug) {
    return copied_sums(data<float>(out), data<float>(in), tiles, bug);
  });
  module.def("grid_sum", [](Array out, Array partials, Array ticket, Array in, int blocks, int bug) {
    return grid_sum(data<int>(out), data<int>(partials), data<unsigned>(ticket), data<int>(in), blocks, bug);
  });
  module.def("warp_sums",
             [](Array out, Array in, int bug) { return warp_sums(data<int>(out), data<int>(in), bug); });
  module.def("copy_rows", [](Array out, Array in, Array rows, int bug) {
    return copy_rows(data<float>(out), data<float>(in), data<int>(rows), static_cast<int>(rows.size()), bug);
  });
  module.def("dependent", [](Array out, int bug) { return dependent(data<int>(out), bug); });
  module.def("launch_sized", &launch_sized);
}

void bind_instructions(py::module_& module) {
  module.def("mma", [](Array d, Array a, Array b, bool bf16) {
    return mma(data<float>(d), data<uint16_t>(a), data<uint16_t>(b), bf16);
  });
  module.def("warp_operations", [](Array out, Array in, unsigned mask) {
    return warp_operations(data<int>(out), data<int>(in), mask);
  });
  module.def("block_operations", [](Array out, Array in) {
    return block_operations(data<int>(out), data<int>(in), static_cast<int>(in.size()));
  });
  module.def("atomics", [](Array cells, int threads) { return atomics(data<unsigned>(cells), threads); });
  bind_map(module, "f16_to_float", &f16_to_float);
  bind_map(module, "float_to_f16", &float_to_f16);
  bind_map(module, "float_to_bf16", &float_to_bf16);
  bind_map(module, "e4m3_to_f16", &e4m3_to_f16);
  bind_map(module, "float_to_e4m3", &float_to_e4m3);
}

}  // namespace

PYBIND11_MODULE(planted, module) {
  microspec::emulation::bind_emulation(module);
  bind_bugs(module);
  bind_kernels(module);
  bind_instructions(module);
}

}  // namespace planted
