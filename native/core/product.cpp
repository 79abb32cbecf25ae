// One product in its parts: see product.h.
#include "core/product.h"

#include "core/internal.h"
#include "kernels/decoder_kernels.h"

namespace zp {
namespace {

// Few rows fill a tile badly; vectors are as fast then.
constexpr int64_t kAmxMinRows = 4;
constexpr int64_t kPassBytes = 1 << 20;

// Memory a thread keeps between calls, as large as its largest call needed.
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

bool is_integer(const Weight& w) {
  return w.activation != ZP_ACTIVATION_FLOAT;
}

bool uses_amx(const Weight& w, int64_t rows) {
  const bool summed_by_tile = !w.scale_by_segment || w.limbs == 1;
  return is_integer(w) && active_level() == ZP_AMX && rows >= kAmxMinRows && w.k_unit >= 32 && summed_by_tile;
}

struct InputParts {  // offsets into its memory
  size_t scale, sums, end;
};

InputParts input_parts(const Weight& w, int64_t rows) {
  rows = round_up(rows, 32);
  InputParts parts{};
  parts.scale = static_cast<size_t>(round_up(rows * w.limbs * w.columns_padded, kAlignment));
  parts.sums = parts.scale + static_cast<size_t>(rows * w.segments) * 4;
  parts.end = parts.sums + static_cast<size_t>(rows * w.limbs * w.segments) * 4;
  return parts;
}

}  // namespace

Multiply multiply_for(const Weight& w, int64_t rows) {
  const Kernels* kernels = active_kernels();
#if defined(__x86_64__)
  if (uses_amx(w, rows)) return {amx_integer, amx_scratch_bytes(w, rows)};
#endif
  if (w.kind != ZP_INTEGER) return {active_decoder_kernels()->floats, 0};
  return {is_integer(w) ? kernels->integer : kernels->floating, 0};
}

bool same_input(const Weight& a, const Weight& b) {
  return is_integer(a) == is_integer(b) && a.columns == b.columns && a.activation == b.activation &&
         a.limbs == b.limbs && a.k_unit == b.k_unit && a.segment == b.segment &&
         a.scale_by_segment == b.scale_by_segment &&
         (a.asymmetric && !a.nibbles) == (b.asymmetric && !b.nibbles);
}

size_t input_bytes(const Weight& w, int64_t rows) {
  return is_integer(w) ? input_parts(w, rows).end : 0;
}

Activations lay_out_input(const Weight& w, int64_t rows, void* memory) {
  if (!is_integer(w)) return {};
  const InputParts parts = input_parts(w, rows);
  auto* bytes = static_cast<uint8_t*>(memory);
  const bool tiled = uses_amx(w, rows);
  return {reinterpret_cast<int8_t*>(bytes),
          reinterpret_cast<float*>(bytes + parts.scale),
          reinterpret_cast<int32_t*>(bytes + parts.sums),
          tiled,
          tiled && w.limbs == 2 && rows <= 8,
          !tiled || (w.asymmetric && !w.nibbles)};
}

Activations rows_from(const Weight& w, const Activations& input, int64_t row) {
  Activations rest = input;
  rest.codes += row * w.limbs * w.columns_padded;
  rest.scale += row * w.segments;
  rest.sums += row * w.limbs * w.segments;
  return rest;
}

int64_t rows_in_pass(const Weight& w) {
  return round_up(ceil_div(kPassBytes, w.columns_padded * w.limbs), 32);
}

int64_t rows_of_each(int64_t rows, int threads) {
  constexpr int64_t kWorthwhile = 160;
  const int64_t each = round_up(ceil_div(rows, threads), 32);
  return each >= kWorthwhile ? each : 0;
}

int64_t blocks_in_step(const Weight& w, int threads) {
  if (threads == 1) return w.blocks;
  int64_t step = round_up(ceil_div(w.blocks, int64_t{threads} * 8), 2);
  while (step < w.blocks && ceil_div(w.blocks, step) % threads != 0) step += 2;
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
