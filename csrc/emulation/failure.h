// SPDX-License-Identifier: Apache-2.0
// Failure is an error in a kernel, thrown by the launch that ran it.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace microspec::emulation {

// A place in the kernel's source.
class Site {
 public:
  constexpr Site() = default;
  constexpr Site(const char* file, unsigned line) : file_(file), line_(line) {}
  constexpr Site(const std::source_location& at) : Site(at.file_name(), at.line()) {}

  const char* file_name() const { return file_; }
  unsigned line() const { return line_; }

 private:
  const char* file_ = "";
  unsigned line_ = 0;
};

// The last, default argument of every emulated instruction: the place of the kernel's call.
#define MICROSPEC_SITE const ::microspec::emulation::Site& site = std::source_location::current()

enum class Kind {
  divergent_barrier,  // not all threads of a block reach a __syncthreads, or they reach different ones
  divergent_warp,     // lanes that name each other in their masks execute different instructions
  wrong_mask,         // a mask without the caller, with an exited lane, or a read of a lane outside it
  misaligned,
  deadlock,
  mbarrier,       // misuse of an mbarrier or of a bulk copy
  shared_memory,  // more than a block may have, or writes beside the arrays
  unsupported,    // an instruction that the emulated device does not have
  missed_wait,    // a dependent kernel's thread that never waited for the kernels before it
};

class Failure : public std::runtime_error {
 public:
  Failure(Kind kind, const std::string& message) : std::runtime_error(message), kind(kind) {}
  const Kind kind;
};

// Ends the launch of the calling kernel thread: launch() throws a Failure that names the block, the thread
// and the site.
[[noreturn]] void fail(Kind kind, const std::string& what, const Site& site);

// Returns a site as text: "vocab_kernel.cuh:120".
std::string text_of(const Site& site);

}  // namespace microspec::emulation
