// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include <dlfcn.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "failure.h"
#include "settings.h"

namespace py = pybind11;

namespace microspec::emulation {

namespace {

// In the order of Kind.
constexpr const char* kNames[] = {"DivergentBarrier", "DivergentWarp", "WrongMask",
                                  "Misaligned",       "Deadlock",      "MBarrierMisuse",
                                  "SharedMemory",     "Unsupported",   "MissedWait"};

// The module's exceptions. Never freed, because a module is never freed either.
std::vector<py::object>& exceptions() {
  static auto* classes = new std::vector<py::object>;
  return *classes;
}

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const Failure& failure) {
    PyErr_SetString(exceptions()[static_cast<size_t>(failure.kind)].ptr(), failure.what());
  }
}

template <class T>
T named(const std::map<std::string, T>& values, py::handle name) {
  const auto found = values.find(name.cast<std::string>());
  if (found == values.end()) throw py::value_error("no such setting: " + name.cast<std::string>());
  return found->second;
}

void configure(const py::kwargs& options) {
  const std::map<std::string, Order> orders{{"in order", Order::in_order}, {"shuffled", Order::shuffled}};
  const std::map<std::string, Copies> copies{
      {"eager", Copies::eager}, {"late", Copies::late}, {"random", Copies::random}};
  Settings next = settings;
  const std::map<std::string, std::function<void(py::handle)>> setters{
      {"arch", [&](py::handle value) { next.arch = value.cast<int>(); }},
      {"device_arch", [&](py::handle value) { next.device_arch = value.cast<int>(); }},
      {"sms", [&](py::handle value) { next.sms = value.cast<int>(); }},
      {"block_shared", [&](py::handle value) { next.block_shared = value.cast<int>(); }},
      {"sm_shared", [&](py::handle value) { next.sm_shared = value.cast<int>(); }},
      {"order", [&](py::handle value) { next.order = named(orders, value); }},
      {"copies", [&](py::handle value) { next.copies = named(copies, value); }},
      {"seed", [&](py::handle value) { next.seed = value.cast<uint64_t>(); }},
      {"resident_blocks", [&](py::handle value) { next.resident_blocks = value.cast<int>(); }},
      {"dry", [&](py::handle value) { next.dry = value.cast<bool>(); }},
      {"launches_meet", [&](py::handle value) { next.launches_meet = value.cast<int>(); }},
  };
  for (const auto& [name, value] : options) named(setters, name)(value);
  settings = next;
}

// Returns a function's offset in this module, by which `nm` names it.
uintptr_t offset_of(const void* function) {
  Dl_info module;
  dladdr(reinterpret_cast<const void*>(&offset_of), &module);
  return reinterpret_cast<uintptr_t>(function) - reinterpret_cast<uintptr_t>(module.dli_fbase);
}

py::list runtime_calls() {
  py::list calls;
  for (const RuntimeCall& call : take_runtime_calls()) {
    calls.append(
        py::make_tuple(call.name, offset_of(call.kernel), call.device, call.shared_bytes, call.dependent));
  }
  return calls;
}

py::dict static_shared() {
  py::dict bytes;
  for (const auto& [kernel, count] : known_kernels()) bytes[py::cast(offset_of(kernel))] = count;
  return bytes;
}

}  // namespace

void bind_emulation(py::module_& module) {
  py::object base = py::exception<Failure>(module, "EmulationError", PyExc_RuntimeError);
  for (const char* name : kNames) exceptions().push_back(py::exception<Failure>(module, name, base));
  py::register_local_exception_translator(translate);
  module.def("arch", [] { return settings.arch; });
  module.def(
      "configure", &configure,
      "arch (that the kernels are compiled for), device_arch (0: the same), sms, block_shared, sm_shared "
      "(bytes), order ('in order', 'shuffled'), copies ('eager', 'late', 'random'), seed (of the next "
      "launch, "
      "and each takes the next one), resident_blocks, dry (check launches, but run none), launches_meet (the "
      "next launches of so many threads wait for one another)");
  module.def(
      "runtime_calls", &runtime_calls,
      "The CUDA runtime's calls since the last time: (name, the kernel's offset in this file, device, bytes "
      "of dynamic shared memory, whether it is a dependent launch)");
  module.def("static_shared", &static_shared,
             "Bytes of static shared memory by kernel, for those that the runtime was asked about");
  module.def("waiting_launches", &waiting_launches, "Threads that wait for other launches");
}

}  // namespace microspec::emulation
