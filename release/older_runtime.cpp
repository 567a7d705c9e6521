// SPDX-License-Identifier: Apache-2.0
// Definitions that the C++ runtime of manylinux_2_28 lacks and that a newer compiler's headers refer to. The
// library keeps them to itself (csrc/exports.map), as the compilers of manylinux images do.
#include <sstream>

// glibc 2.32: whether the process has one thread, for libstdc++ to count references without atomics.
// Always "no" here.
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}

// GLIBCXX_3.4.26 and 3.4.29 (GCC 9 and 11).
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();
template std::string std::basic_stringbuf<char>::str() const&;
template std::string std::basic_stringbuf<char>::str() &&;
