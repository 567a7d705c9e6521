# SPDX-License-Identifier: Apache-2.0
# Links the library as glibc 2.28 would (manylinux_2_28). glibc 2.34 moved the functions of libdl, libpthread and
# librt into libc under a new version, and a link against it asks for that version. It also keeps the old one. The
# libraries made here have the old libraries' names and versions and no code: the linker records both, and the
# loader finds the functions in whichever glibc it runs with.

set(folder "${CMAKE_CURRENT_BINARY_DIR}/glibc")

# add_old_library(dl 2 GLIBC_2.2.5:dlopen ...): a stand-in for libdl.so.2.
function(add_old_library name soversion)
  set(code "")
  set(map "")
  foreach(entry ${ARGN})
    string(REPLACE ":" ";" entry ${entry})
    list(GET entry 0 version)
    list(GET entry 1 symbol)
    string(APPEND code "void ${symbol}(void) {}\n")
    list(APPEND versions ${version})
    list(APPEND symbols_${version} ${symbol})
  endforeach()
  list(REMOVE_DUPLICATES versions)
  foreach(version ${versions})
    list(JOIN symbols_${version} "; " symbols)
    string(APPEND map "${version} { global: ${symbols}; };\n")
  endforeach()
  file(CONFIGURE OUTPUT "${folder}/${name}.cpp" CONTENT "extern \"C\" {\n${code}}\n" @ONLY)
  file(CONFIGURE OUTPUT "${folder}/${name}.map" CONTENT "${map}" @ONLY)
  add_library(old_${name} SHARED "${folder}/${name}.cpp")
  target_compile_options(old_${name} PRIVATE -fno-builtin -fvisibility=default)
  target_link_options(old_${name} PRIVATE -nostdlib "-Wl,--version-script=${folder}/${name}.map")
  set_target_properties(old_${name} PROPERTIES OUTPUT_NAME ${name} SOVERSION ${soversion}
                                               LIBRARY_OUTPUT_DIRECTORY "${folder}")
  target_link_libraries(microspec PRIVATE old_${name})
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(first GLIBC_2.17) # the first glibc for aarch64
  set(dlmopen ${first})
else()
  set(first GLIBC_2.2.5)
  set(dlmopen GLIBC_2.3.4)
endif()

set(dl dlopen dlsym dlvsym dlclose dlerror)
list(TRANSFORM dl PREPEND ${first}:)
add_old_library(dl 2 ${dl} ${dlmopen}:dlmopen)
# All that is used of libm: the linker does not look into another library of that name.
add_old_library(m 6 ${first}:log ${first}:tanhf)
if(with_cuda)
  # What the static CUDA runtime calls.
  set(pthread
      pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join
      pthread_key_create pthread_key_delete pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy
      pthread_mutexattr_init pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once
      pthread_rwlock_destroy pthread_rwlock_init pthread_rwlock_rdlock pthread_rwlock_timedrdlock
      pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock pthread_rwlock_trywrlock pthread_rwlock_unlock
      pthread_rwlock_wrlock pthread_rwlockattr_destroy pthread_rwlockattr_init
      pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init
      pthread_spin_lock pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post
      sem_timedwait sem_trywait sem_wait)
  set(rt shm_open shm_unlink)
  list(TRANSFORM pthread PREPEND ${first}:)
  list(TRANSFORM rt PREPEND ${first}:)
  add_old_library(pthread 0 ${pthread})
  add_old_library(rt 1 ${rt})
endif()
# The CUDA runtime, which needs them, comes after them.
target_link_options(microspec PRIVATE -Wl,--no-as-needed)
target_sources(microspec PRIVATE release/older_runtime.cpp)
