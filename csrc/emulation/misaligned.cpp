// SPDX-License-Identifier: Apache-2.0
// The handler of g++'s alignment check (-fsanitize=alignment) of every access in a kernel. It turns a
// misaligned vector access into a Failure with its source line, without the sanitizer's library.
#include "runtime.h"

namespace {

// GCC's layout of the argument.
struct TypeMismatch {
  struct {
    const char* file;
    uint32_t line, column;
  } at;
  const void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

}  // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* found, uintptr_t) {
  using namespace microspec::emulation;
  const auto bytes = 1u << found->log_alignment;
  fail(Kind::misaligned, "an access that needs " + std::to_string(bytes) + " aligned bytes",
       Site(found->at.file, found->at.line));
}
