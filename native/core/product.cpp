// What a product needs before its kernel runs: the kernel, the layout of the quantized input, and the division of rows
// and blocks among the threads.
//
// AMX, AVX-512's panels, and AVX2's and AVX-VNNI's kernels for 16-bit inputs, are chosen here and not in isa.cpp: the
// choice depends on the number of rows and on the weight's layout, which differ from product to product. The level
// ZP_AMX uses the AVX-512 kernel tables. amx_integer replaces their integer product where uses_amx returns true,
// vnni_integer where uses_vnni returns true.
//
// A row, in this file, is a row of the input: one token. The 16 rows of an AMX tile are called tile rows. A token of
// 16-bit codes fills two of them, one for each of its limbs (the int8 halves of the codes, core/layout.h).
// Weight::nibbles is true for all codes of at most 5 bits: their low four bits are stored as nibbles.
// A segment is a run of columns with one weight scale and one input scale (core/layout.h).
#include "core/product.h"

#include "core/internal.h"
#include "kernels/decoder_kernels.h"

namespace zp {
namespace {

// Sizes marked "Not measured" were never benchmarked against other values. The other sizes follow from the machine, or
// their comment names the measurement.

// Least number of rows for which AMX is used. With fewer rows, most rows of an AMX tile would be empty. Not measured.
constexpr int64_t kAmxMinRows = 4;
// The same for a float scale that varies along the row: AVX-512 was measured to be faster with 8 rows, and equal with
// 16 (docs/decisions/panels-avx512.md).
constexpr int64_t kAmxMinRowsBySegment = 17;
// Most rows of limbs that AVX-512 multiplies without widening the weights to a panel (vnni.cpp), and the same for a
// float scale that varies along the row. Measured: docs/decisions/panels-avx512.md.
constexpr int64_t kRowsWithoutPanel = 12, kRowsWithoutPanelBySegment = 24;
// Bytes of input codes to quantize and multiply at a time: half of a second-level cache of 2 MiB.
constexpr int64_t kBytesAtOnce = 1 << 20;
// Rows of two AMX tiles. rows_at_once and rows_of_each return multiples of it.
constexpr int64_t kRowUnit = 32;
// Least number of rows per thread for which threads split the rows (rows_of_each). With fewer, threads split the output
// channels. Rows are rounded up to a multiple of kRowUnit before the comparison, so the real threshold is 129. Not
// measured.
constexpr int64_t kMinRowsOfThread = 160;
// Number of steps (blocks_in_step) that each thread's share of a product is cut into, roughly. If a thread is slow,
// other threads take its last steps. Not measured.
constexpr int64_t kStepsOfThread = 8;
// Least number of rows (tokens) for which AVX2 and AVX-VNNI multiply codes of at most 5 bits by int16 input codes. For
// fewer rows, splitting the input codes into int8 limbs was measured to be faster on AVX2
// (docs/decisions/activations-16-bit.md).
constexpr int64_t kInt16MinRows = 4;
// Largest number of rows whose two limbs fit one AMX tile: 8 tile rows of low limbs and 8 of high limbs.
constexpr int64_t kRowsSharingTile = 8;

// Memory that a thread keeps between calls. It grows to the largest size asked for.
class Scratch {
 public:
  ~Scratch() { release(memory_); }
  uint8_t* get(size_t bytes) {
    if (bytes > bytes_) {
      release(memory_);
      memory_ = allocate(bytes);
      bytes_ = memory_ == nullptr ? 0 : bytes;
    }
    return static_cast<uint8_t*>(memory_);
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

// True if the kernels quantize the input of this weight. False for float input, which integer weights can take too.
bool quantizes_input(const Weight& w) {
  return w.activation != ZP_ACTIVATION_FLOAT;
}

// True if AMX products read the sums of the input's codes. They do for zero points of 6- to 8-bit codes, which are
// subtracted after the product. Zero points of codes of at most 5 bits are subtracted before it, when a code is widened
// to a byte.
bool amx_reads_sums(const Weight& w) {
  return w.asymmetric && !w.nibbles;
}

#if defined(__x86_64__)
// True if a float scale of the weight or of the input varies along the row.
bool has_float_segments(const Weight& w) {
  return w.scale_by_segment || w.input_by_segment;
}

// True if an AMX kernel multiplies `rows` rows by the weight.
bool uses_amx(const Weight& w, int64_t rows) {
  const int64_t min_rows = has_float_segments(w) ? kAmxMinRowsBySegment : kAmxMinRows;
  return quantizes_input(w) && active_level() == ZP_AMX && rows >= min_rows && supports_amx(w);
}

// True if AVX-512's kernel for several rows multiplies `rows` rows by the weight, at level AVX-512 or AMX.
bool uses_vnni(const Weight& w, int64_t rows) {
  const int level = active_level();
  const int64_t without = has_float_segments(w) ? kRowsWithoutPanelBySegment : kRowsWithoutPanel;
  return quantizes_input(w) && (level == ZP_AVX512 || level == ZP_AMX) && !uses_amx(w, rows) &&
         rows * w.limbs > without && supports_vnni(w);
}
#else
bool uses_amx(const Weight&, int64_t) {
  return false;
}
bool uses_vnni(const Weight&, int64_t) {
  return false;
}
#endif

// True if the weight takes 16-bit input codes and the level multiplies int16 numbers (VPMADDWD, VPDPWSSD).
bool multiplies_int16(const Weight& w) {
  const int level = active_level();
  return quantizes_input(w) && w.limbs == 2 && (level == ZP_AVX2 || level == ZP_AVXVNNI);
}

// True if 16-bit input codes stay int16 and are not split into limbs.
bool uses_int16(const Weight& w, int64_t rows) {
  return multiplies_int16(w) && (!w.nibbles || rows >= kInt16MinRows);
}

// Return the bytes of a token's codes. Rows of int16 codes are an odd multiple of 512 bytes apart: a kernel reads
// pieces of several rows at a time, and rows a multiple of 4096 bytes apart would evict one another from the
// first-level cache.
int64_t token_bytes(const Weight& w, int64_t rows) {
  if (!uses_int16(w, rows)) return w.limbs * w.columns_padded;
  constexpr int64_t kUnit = 512;
  return (ceil_div(w.columns_padded * 2, kUnit) | 1) * kUnit;
}

struct InputOffsets {  // byte offsets into the memory of a quantized input; the codes are at 0
  size_t scale, sums, end;
};

InputOffsets input_offsets(const Weight& w, int64_t rows) {
  const int64_t bytes = token_bytes(w, rows);
  rows = round_up(rows, kRowUnit);
  InputOffsets offsets{};
  offsets.scale = static_cast<size_t>(round_up(rows * bytes, kAlignment));
  offsets.sums = offsets.scale + static_cast<size_t>(rows * w.segments) * 4;
  offsets.end = offsets.sums + static_cast<size_t>(rows * w.limbs * w.segments) * 4;
  return offsets;
}

}  // namespace

Multiply multiply_for(const Weight& w, [[maybe_unused]] int64_t rows) {
  const Kernels* kernels = active_kernels();
#if defined(__x86_64__)
  if (uses_amx(w, rows)) return {amx_integer, amx_scratch_bytes(w, rows)};
  if (uses_vnni(w, rows)) return {vnni_integer, vnni_scratch_bytes(w, rows)};
  if (uses_int16(w, rows))
    return active_level() == ZP_AVX2 ? Multiply{avx2::int16_integer, avx2::int16_scratch_bytes()}
                                     : Multiply{avxvnni::int16_integer, avxvnni::int16_scratch_bytes()};
  if (multiplies_int16(w) && active_level() == ZP_AVX2 && avx2::supports_few_nibbles(w)) return {avx2::few_nibbles, 0};
#endif
  if (w.kind != ZP_INTEGER) return {active_decoder_kernels()->floats, 0};
  return {quantizes_input(w) ? kernels->integer : kernels->floating, 0};
}

bool same_input(const Weight& a, const Weight& b, int64_t rows) {
  return quantizes_input(a) == quantizes_input(b) && uses_int16(a, rows) == uses_int16(b, rows) &&
         a.columns == b.columns && a.activation == b.activation && a.limbs == b.limbs &&
         a.k_unit == b.k_unit && a.segment == b.segment && a.scale_by_segment == b.scale_by_segment &&
         amx_reads_sums(a) == amx_reads_sums(b);
}

size_t input_bytes(const Weight& w, int64_t rows) {
  return quantizes_input(w) ? input_offsets(w, rows).end : 0;
}

Activations lay_out_input(const Weight& w, int64_t rows, void* memory) {
  if (!quantizes_input(w)) return {};
  const InputOffsets offsets = input_offsets(w, rows);
  auto* bytes = static_cast<uint8_t*>(memory);
  const bool amx = uses_amx(w, rows), tiled = amx || uses_vnni(w, rows), int16 = uses_int16(w, rows);
  return {.codes = reinterpret_cast<int8_t*>(bytes),
          .scale = reinterpret_cast<float*>(bytes + offsets.scale),
          .sums = reinterpret_cast<int32_t*>(bytes + offsets.sums),
          .token_bytes = token_bytes(w, rows),
          .tiled = tiled,
          .int16 = int16,
          .limbs_share_tile = amx && w.limbs == 2 && rows <= kRowsSharingTile,
          // int8 vector kernels read the sums for some weights, so the sums are filled for all weights
          .want_sums = !int16 && (!amx || amx_reads_sums(w))};
}

Activations rows_from(const Weight& w, const Activations& input, int64_t row) {
  Activations rest = input;
  rest.codes += row * input.token_bytes;
  rest.scale += row * w.segments;
  rest.sums += row * w.limbs * w.segments;
  return rest;
}

int64_t rows_at_once(const Weight& w) {
  return round_up(ceil_div(kBytesAtOnce, w.columns_padded * w.limbs), kRowUnit);
}

int64_t rows_of_each(int64_t rows, int threads) {
  const int64_t each = round_up(ceil_div(rows, threads), kRowUnit);
  return each >= kMinRowsOfThread ? each : 0;
}

int64_t blocks_in_step(const Weight& w, int threads) {
  if (threads == 1) return w.blocks;
  constexpr int64_t kPair = 2;  // AMX multiplies two blocks at a time
  int64_t step = round_up(ceil_div(w.blocks, threads * kStepsOfThread), kPair);
  // Lengthen the step until the number of steps divides evenly among the threads.
  while (step < w.blocks && ceil_div(w.blocks, step) % threads != 0) step += kPair;
  return step;
}

uint8_t* thread_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.get(bytes);
}

uint8_t* call_scratch(size_t bytes) {
  thread_local Scratch scratch;
  return scratch.get(bytes);
}

}  // namespace zp
