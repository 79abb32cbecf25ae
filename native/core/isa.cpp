// Instruction set levels: which ones this machine can run, and which one is in use.
//
// This file makes every choice by level, but one. AMX is a level without kernel tables: at ZP_AMX the functions below
// return the AVX-512 tables. Whether AMX tiles multiply is decided per product in product.cpp (uses_amx), because it
// depends on the number of rows and on the weight's layout.
#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <thread>

#include "core/internal.h"
#include "kernels/decoder_kernels.h"
#include "kernels/quantizer_kernels.h"
#include "kernels/sampler_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace zp {
namespace {

constexpr const char* kNames[ZP_ISA_COUNT] = {"scalar", "avx2", "avx512", "amx"};

#if defined(__x86_64__) && !defined(ZP_EMULATED)
// True if the CPU has AMX-TILE and AMX-INT8 and Linux grants this process the tile registers.
bool amx_available() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  const bool tiles = (d >> 24 & 1) != 0, int8 = (d >> 25 & 1) != 0;
  return tiles && int8 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// Return a bit set of the levels that this machine can run.
uint32_t detect() {
  uint32_t levels = 1u << ZP_SCALAR;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    levels |= 1u << ZP_AVX2;
#if defined(ZP_EMULATED)  // zeropoint_emulated of the tests: its AVX-512 and AMX kernels are plain C++
  levels |= 1u << ZP_AVX512 | 1u << ZP_AMX;
#else
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni"))
    levels |= 1u << ZP_AVX512;
  if ((levels >> ZP_AVX512 & 1) != 0 && amx_available()) levels |= 1u << ZP_AMX;
#endif
#endif
  return levels;
}

// The number of calls that are running. While the level changes, kChanging is added, which makes it negative.
std::atomic<int32_t> running{0};
constexpr int32_t kChanging = INT32_MIN / 2;

// Reset the count in a forked child: the calls of the parent's other threads do not continue there.
void forget_calls() {
  running.store(0);
}

uint32_t levels() {
  static const uint32_t detected = [] {
    pthread_atfork(nullptr, nullptr, forget_calls);
    return detect();
  }();
  return detected;
}

zp_status check(int level) {
  if (level < 0 || level >= ZP_ISA_COUNT)
    return fail(ZP_INVALID, "there is no instruction set level %d", level);
  if ((levels() >> level & 1) == 0)
    return fail(ZP_UNSUPPORTED, "this CPU cannot run the %s kernels", kNames[level]);
  return ZP_OK;
}

// Return the level that ZEROPOINT_ISA names, else the best one. Returns -1, with the error recorded, if ZEROPOINT_ISA
// names a level that does not exist or cannot run here.
int choose() {
  const char* name = std::getenv("ZEROPOINT_ISA");
  if (name != nullptr && *name != '\0') {
    for (int level = 0; level < ZP_ISA_COUNT; ++level)
      if (std::strcmp(name, kNames[level]) == 0) {
        if (check(level) == ZP_OK) return level;
        fail(ZP_UNSUPPORTED, "ZEROPOINT_ISA=%s, but this CPU cannot run the %s kernels", name, name);
        return -1;
      }
    fail(ZP_INVALID, "ZEROPOINT_ISA=%s is no level: use scalar, avx2, avx512 or amx", name);
    return -1;
  }
  int best = ZP_SCALAR;
  for (int level = 0; level < ZP_ISA_COUNT; ++level)
    if ((levels() >> level & 1) != 0) best = level;
  return best;
}

constexpr int kUndecided = -2;
std::atomic<int> active{kUndecided};

}  // namespace

// Waits while another thread changes the level.
Running::Running() {
  while (running.fetch_add(1, std::memory_order_acquire) < 0) {
    running.fetch_sub(1, std::memory_order_relaxed);
    std::this_thread::yield();
  }
}

Running::~Running() {
  running.fetch_sub(1, std::memory_order_release);
}

int active_level() {
  int level = active.load(std::memory_order_acquire);
  if (level >= 0) return level;
  level = choose();  // not stored if it is -1: every call then reports the unusable ZEROPOINT_ISA
  if (level >= 0) active.store(level, std::memory_order_release);
  return level;
}

namespace {

// Return the table of the level in use, of tables in the order of zp_isa; null if there is no usable level.
template <class Table>
const Table* table_of_level(std::initializer_list<const Table* (*)()> tables) {
  const int level = active_level();
  return level < 0 ? nullptr : tables.begin()[level]();
}

}  // namespace

// The last table is AMX's: it has none of its own, and uses AVX-512's. product.cpp puts amx_integer in place of that
// table's `integer` where AMX multiplies.
#if defined(__x86_64__)
#define ZP_TABLES(function) {scalar::function, avx2::function, avx512::function, avx512::function}
#else
#define ZP_TABLES(function) {scalar::function}
#endif

const Kernels* active_kernels() {
  return table_of_level<Kernels>(ZP_TABLES(kernels));
}

const DecoderKernels* active_decoder_kernels() {
  return table_of_level<DecoderKernels>(ZP_TABLES(decoder_kernels));
}

const QuantizerKernels* active_quantizer_kernels() {
  return table_of_level<QuantizerKernels>(ZP_TABLES(quantizer_kernels));
}

const SamplerKernels* active_sampler_kernels() {
  return table_of_level<SamplerKernels>(ZP_TABLES(sampler_kernels));
}

}  // namespace zp

uint32_t zp_isa_levels(void) {
  return zp::levels();
}

int32_t zp_isa_active(void) {
  return zp::active_level();
}

zp_status zp_isa_select(int32_t level) {
  using namespace zp;
  if (const zp_status status = check(level); status != ZP_OK) return status;
  int32_t none = 0;
  if (!running.compare_exchange_strong(none, kChanging, std::memory_order_acq_rel))
    return fail(ZP_UNSUPPORTED, "the instruction set cannot change to %s while another thread computes",
                kNames[level]);
  active.store(level, std::memory_order_release);
  running.fetch_sub(kChanging, std::memory_order_release);
  return ZP_OK;
}
