// Counts of the checks of a test program.
#pragma once

#include <atomic>
#include <cstdio>

#include "zeropoint.h"

namespace {

std::atomic<int> passed{0}, failed{0};  // atomic: several threads call expect

inline void expect(bool good, const char* what) {
  (good ? passed : failed) += 1;
  if (!good) std::printf("FAILED: %s (%s)\n", what, zp_last_error());
}

// Print the counts, and return the exit status of the program.
inline int report() {
  std::printf("%d passed, %d failed\n", passed.load(), failed.load());
  return failed == 0 ? 0 : 1;
}

}  // namespace
