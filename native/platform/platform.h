// What differs between operating systems and between processors.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zp {

// -- the operating system: posix.cpp --------------------------------------------------------------

// Return memory aligned to kAlignment, on huge pages if it has 2 MiB or more; null when there is none.
void* allocate(size_t bytes);
void release(void* memory);
// Return the pages that lie wholly inside to the system. The address range stays valid, its contents are lost.
void forget(void* memory, size_t bytes);

// Call `handler` in every child that the process forks from now on.
void after_fork(void (*handler)());

// -- the processor: cpu_x86.cpp, cpu_arm_linux.cpp, cpu_arm_macos.cpp, cpu_other.cpp ---------------

// Return a bit set of the levels (zp_isa) that the processor and the operating system can run.
uint32_t detect_levels();

// Tell the processor that the thread spins.
inline void spin() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace zp
