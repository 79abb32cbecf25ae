// The instruction set levels that a test program tests.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "zeropoint.h"

// Return the levels that the program's arguments name, or, without arguments, those that this machine can run. An argument
// that names no level ends the program.
inline std::vector<int> levels_of(int count, char** arguments) {
  constexpr const char* kNames[ZP_ISA_COUNT] = {"scalar", "avx2",    "avxvnni", "avx512",
                                                "amx",    "neon",    "dotprod", "i8mm"};
  std::vector<int> levels;
  for (int i = 1; i < count; ++i) {
    int level = 0;
    while (level < ZP_ISA_COUNT && std::strcmp(arguments[i], kNames[level]) != 0) ++level;
    if (level == ZP_ISA_COUNT) {
      std::printf("%s is no level\n", arguments[i]);
      std::exit(2);
    }
    levels.push_back(level);
  }
  for (int level = 0; count < 2 && level < ZP_ISA_COUNT; ++level)
    if ((zp_isa_levels() >> level & 1) != 0) levels.push_back(level);
  return levels;
}
