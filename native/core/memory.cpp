// Aligned memory for packed weights, key-value caches and workspaces.
#include <sys/mman.h>

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
#ifdef MADV_HUGEPAGE
  if (huge) madvise(memory, bytes, MADV_HUGEPAGE);  // a hint, for fewer page walks; its failure does not matter
#endif
  return memory;
}

void release(void* memory) {
  std::free(memory);
}

void forget(void* memory, size_t bytes) {
#ifdef MADV_DONTNEED
  constexpr uintptr_t kSystemPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kSystemPage - 1) / kSystemPage * kSystemPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kSystemPage * kSystemPage;
  // A hint: if the system refuses (because its pages are larger, say), the memory stays until release().
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace zp
