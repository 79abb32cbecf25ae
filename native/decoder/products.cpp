#include "decoder/products.h"

#include <algorithm>

#include "core/internal.h"
#include "core/product.h"
#include "core/parallel.h"

namespace zp {
namespace {

// Below so many multiplications, starting another thread takes longer than the work.
constexpr int64_t kSerialProduct = 1 << 16;
constexpr double kQuantizeNanoseconds = 0.15;  // a value

struct Pass {
  Product product[Products::kMost];
  Multiply multiply[Products::kMost];
  bool quantizes[Products::kMost];
  int64_t step[Products::kMost], pieces[Products::kMost];
  int count;
};

// The quantized inputs, shared where the weights agree. False: no memory for them.
bool lay_out(const Products& all, int64_t begin, int64_t rows, Pass& pass) {
  size_t at[Products::kMost], bytes = 0;
  pass.count = all.count;
  for (int i = 0; i < all.count; ++i) {
    const Weight& w = *all.terms[i].weight;
    const size_t size = input_bytes(w, rows);
    int same = 0;
    while (same < i && !same_input(*all.terms[same].weight, w)) ++same;
    pass.quantizes[i] = same == i && size > 0;
    at[i] = same < i ? at[same] : bytes;
    if (same == i) bytes += static_cast<size_t>(round_up(static_cast<int64_t>(size), kAlignment));
  }
  uint8_t* memory = bytes > 0 ? call_scratch(bytes) : nullptr;
  if (bytes > 0 && memory == nullptr) return false;
  for (int i = 0; i < all.count; ++i) {
    const Term& term = all.terms[i];
    Product& p = pass.product[i];
    p = Product{};
    p.weight = term.weight;
    p.x = all.x + begin * all.x_stride;
    p.x_stride = all.x_stride;
    p.rows = rows;
    p.bias = term.bias;
    p.y = term.y + begin * term.y_stride;
    p.y_stride = term.y_stride;
    if (input_bytes(*term.weight, rows) > 0) p.input = lay_out_input(*term.weight, rows, memory + at[i]);
    pass.multiply[i] = multiply_for(*term.weight, rows);
  }
  return true;
}

// Pieces of all terms lie in one row, and threads take the next.
bool multiply_pass(Pass& pass, int threads) {
  int64_t pieces = 0, work = 0, scratch_bytes = 0;
  for (int i = 0; i < pass.count; ++i) {
    const Product& p = pass.product[i];
    work += p.rows * p.weight->rows * p.weight->columns;
    scratch_bytes = std::max(scratch_bytes, pass.multiply[i].scratch_bytes);
  }
  if (work < kSerialProduct) threads = 1;
  for (int i = 0; i < pass.count; ++i) {
    pass.step[i] = blocks_in_step(*pass.product[i].weight, threads);
    pass.pieces[i] = ceil_div(pass.product[i].weight->blocks, pass.step[i]);
    pieces += pass.pieces[i];
  }
  std::atomic<bool> out_of_memory{false};
  parallel(threads, pieces, 1, [&](int64_t begin, int64_t end) {
    uint8_t* scratch = scratch_bytes > 0 ? thread_scratch(static_cast<size_t>(scratch_bytes)) : nullptr;
    if (scratch_bytes > 0 && scratch == nullptr) {
      out_of_memory.store(true);
      return;
    }
    for (int64_t piece = begin; piece < end; ++piece) {
      int i = 0;
      int64_t at = piece;
      for (; at >= pass.pieces[i]; ++i) at -= pass.pieces[i];
      const int64_t block = at * pass.step[i],
                    stop = std::min(block + pass.step[i], pass.product[i].weight->blocks);
      pass.multiply[i].run(pass.product[i], block, stop, scratch);
    }
  });
  return !out_of_memory.load();
}

}  // namespace

bool multiply(const Products& all, int threads) {
  const Kernels* kernels = active_kernels();
  int64_t most = all.rows;
  for (int i = 0; i < all.count; ++i) most = std::min(most, rows_in_pass(*all.terms[i].weight));
  for (int64_t begin = 0; begin < all.rows; begin += most) {
    Pass pass;
    if (!lay_out(all, begin, std::min(most, all.rows - begin), pass)) return false;
    for (int i = 0; i < all.count; ++i) {
      const Product& p = pass.product[i];
      if (pass.quantizes[i])
        each_row(threads, p.rows, static_cast<double>(p.weight->columns) * kQuantizeNanoseconds,
                 [&](int64_t row) { kernels->quantize(p, row, row + 1); });
    }
    if (!multiply_pass(pass, threads)) return false;
  }
  return true;
}

}  // namespace zp
