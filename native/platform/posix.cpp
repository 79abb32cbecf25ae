// Memory and forks on Linux and macOS.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "core/internal.h"

namespace zp {

void* allocate(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;  // the size of a huge page
  constexpr size_t kMost = size_t{1} << 60;  // more would overflow when it is rounded up
  if (bytes > kMost) return nullptr;
  const bool huge = bytes >= kHuge;
  void* memory = nullptr;
  bytes = static_cast<size_t>(round_up(static_cast<int64_t>(bytes), kAlignment));
  if (posix_memalign(&memory, huge ? kHuge : kAlignment, bytes) != 0) return nullptr;
#ifdef MADV_HUGEPAGE  // Linux
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // a hint, for fewer page walks; its failure does not matter
#endif
  return memory;
}

void release(void* memory) {
  std::free(memory);
}

void forget(void* memory, size_t bytes) {
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));  // 4 KiB; 16 or 64 KiB on some ARM systems
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);  // a hint, too
}

void after_fork(void (*handler)()) {
  pthread_atfork(nullptr, nullptr, handler);
}

}  // namespace zp
