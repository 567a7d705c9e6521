// SPDX-License-Identifier: Apache-2.0
// MICROSPEC_CLONES compiles a function once per instruction set and chooses at load. It is for loops that the
// compiler vectorises by itself.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && defined(__gnu_linux__)
#define MICROSPEC_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MICROSPEC_CLONES
#endif
