// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#ifdef MICROSPEC_ARM
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace microspec {

namespace {

// The supported sets, best first. The portable set is always last.
std::vector<const InstructionSet*> supported() {
  std::vector<const InstructionSet*> sets;
#ifdef MICROSPEC_X86
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && amx_usable()) sets.push_back(&kAmx);
  if (avx512 && __builtin_cpu_supports("avx512bf16")) sets.push_back(&kAvx512Bf16);
  if (avx512) sets.push_back(&kAvx512);
  // Every processor with AVX2 and FMA also has F16C.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&kAvx2);
#endif
#ifdef MICROSPEC_ARM
  constexpr unsigned long kHasBf16 = 1ul << 14;  // HWCAP2_BF16; older headers lack the name
  if (getauxval(AT_HWCAP2) & kHasBf16) sets.push_back(&kNeonBf16);
  sets.push_back(&kNeon);
#endif
  sets.push_back(&kPortable);
  return sets;
}

const InstructionSet& choose() {
  const auto sets = supported();
  const char* wanted = std::getenv("MICROSPEC_ISA");
  if (!wanted || !*wanted) return *sets.front();
  std::string names;
  for (const auto* set : sets) {
    if (std::string(wanted) == set->name) return *set;
    names += std::string(names.empty() ? "" : ", ") + set->name;
  }
  throw std::runtime_error("ValueError: microspec: MICROSPEC_ISA: expected one of " + names + ", got " +
                           wanted);
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = choose();
  return chosen;
}

}  // namespace microspec

// Returns the set's name for `microspec info`, through ctypes. If MICROSPEC_ISA names no set, returns an
// error text that lists them.
extern "C" __attribute__((visibility("default"))) const char* microspec_instruction_set() noexcept {
  try {
    return microspec::instruction_set().name;
  } catch (const std::exception& error) {
    static const std::string text = error.what();
    return text.c_str();
  }
}
