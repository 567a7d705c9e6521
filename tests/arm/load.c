// SPDX-License-Identifier: Apache-2.0
// Load a library, bind all its symbols at once, and print the instruction set that it chose.
#include <dlfcn.h>
#include <stdio.h>

int main(int count, char** words) {
  void* library = count == 2 ? dlopen(words[1], RTLD_NOW) : NULL;
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const char* (*chosen)(void) = (const char* (*)(void))dlsym(library, "microspec_instruction_set");
  puts(chosen());
  return 0;
}
