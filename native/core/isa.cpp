// Instruction set levels: which ones this machine can run, and which one is in use.
//
// This file chooses the kernel tables by level. AMX is a level without kernel tables: at ZP_AMX the functions below
// return the AVX-512 tables. product.cpp makes further choices by level for each product, because they depend on the
// number of rows and on the weight's layout: whether AMX tiles or panels multiply, and which kernel of AVX2 or AVX-VNNI
// takes 16-bit inputs.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <thread>

#include "core/internal.h"

namespace zp {
namespace {

constexpr const char* kNames[ZP_ISA_COUNT] = {"scalar", "avx2",    "avxvnni", "avx512",
                                              "amx",    "neon",    "dotprod", "i8mm"};

// The number of calls that are running. While the level changes, kChanging is added, which makes it negative.
std::atomic<int32_t> running{0};
constexpr int32_t kChanging = INT32_MIN / 2;

// Reset the count in a forked child: the calls of the parent's other threads do not continue there.
void forget_calls() {
  running.store(0);
}

uint32_t levels() {
  static const uint32_t detected = [] {
    after_fork(forget_calls);
    return detect_levels();
  }();
  return detected;
}

zp_status check(int level) {
  if (level < 0 || level >= ZP_ISA_COUNT)
    return fail(ZP_INVALID, "there is no instruction set level %d", level);
  if ((levels() >> level & 1) == 0)
    return fail(ZP_UNSUPPORTED, "this machine cannot run the %s kernels", kNames[level]);
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
        fail(ZP_UNSUPPORTED, "ZEROPOINT_ISA=%s, but this machine cannot run the %s kernels", name, name);
        return -1;
      }
    fail(ZP_INVALID,
         "ZEROPOINT_ISA=%s is no level: use scalar; avx2, avxvnni, avx512 or amx (x86); neon, dotprod or i8mm (ARM)",
         name);
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

// The fifth table of x86 is for AMX, which uses AVX-512's. product.cpp puts amx_integer in place of that table's
// `integer` where AMX multiplies.
#if defined(__x86_64__)
#define ZP_TABLES(function) \
  {scalar::function, avx2::function, avxvnni::function, avx512::function, avx512::function}
#elif defined(__aarch64__)
#define ZP_TABLES(function) \
  {scalar::function, nullptr, nullptr, nullptr, nullptr, neon::function, dotprod::function, i8mm::function}
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
