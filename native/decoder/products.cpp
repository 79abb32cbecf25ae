// Products of one input with several weights: the blocks of all weights form one row of work, which threads share.
#include "decoder/products.h"

#include <algorithm>

#include "core/ahead.h"
#include "core/internal.h"
#include "core/product.h"
#include "core/parallel.h"

namespace zp {
namespace {

// Fewer multiplications are done on one thread: starting another takes longer.
constexpr int64_t kSerialProduct = 1 << 16;
constexpr double kQuantizeNanoseconds = 0.15;  // per value, roughly

// The products of some rows, ready to run.
struct Slice {
  const Weight* weight[Products::kMost];
  Product product[Products::kMost];
  Multiply multiply[Products::kMost];
  bool quantizes[Products::kMost];  // false: the input is float, or shared with an earlier weight
  int count;
  int64_t blocks, scratch_bytes;
};

// In the row of work every weight takes an even number of blocks, because AMX multiplies blocks in pairs.
constexpr int64_t kPair = 2;

int64_t blocks_of(const Weight& w) {
  return round_up(w.blocks, kPair);
}

// Set up the products of `rows` rows from `begin` on, and lay out their quantized inputs. Returns false if there is no
// memory.
bool lay_out(const Products& all, int64_t begin, int64_t rows, Slice& slice) {
  size_t at[Products::kMost], bytes = 0;
  slice.count = all.count;
  slice.blocks = slice.scratch_bytes = 0;
  for (int i = 0; i < all.count; ++i) {
    const Weight& w = *all.terms[i].weight;
    const size_t size = input_bytes(w, rows);
    int same = 0;
    while (same < i && !same_input(*all.terms[same].weight, w, rows)) ++same;
    slice.quantizes[i] = same == i && size > 0;
    at[i] = same < i ? at[same] : bytes;
    if (same == i) bytes += static_cast<size_t>(round_up(static_cast<int64_t>(size), kAlignment));
  }
  uint8_t* memory = bytes > 0 ? call_scratch(bytes) : nullptr;
  if (bytes > 0 && memory == nullptr) return false;
  for (int i = 0; i < all.count; ++i) {
    const Term& term = all.terms[i];
    Product& p = slice.product[i];
    p = Product{};
    p.weight = term.weight;
    p.x = all.x + begin * all.x_stride;
    p.x_stride = all.x_stride;
    p.rows = rows;
    p.bias = term.bias;
    p.y = term.y + begin * term.y_stride;
    p.y_stride = term.y_stride;
    if (input_bytes(*term.weight, rows) > 0) p.input = lay_out_input(*term.weight, rows, memory + at[i]);
    slice.weight[i] = term.weight;
    slice.multiply[i] = multiply_for(*term.weight, rows);
    slice.blocks += blocks_of(*term.weight);
    slice.scratch_bytes = std::max(slice.scratch_bytes, slice.multiply[i].scratch_bytes);
  }
  return true;
}

// Call body(i, begin, end) for the blocks [begin, end) of each weight i that lie in a share of the row of work.
template <class F>
void by_weight(const Weight* const* weights, int count, Share share, F&& body) {
  for (int i = 0; i < count; ++i) {
    const int64_t begin = std::max<int64_t>(share.begin, 0), end = std::min(share.end, weights[i]->blocks);
    if (begin < end) body(i, begin, end);
    share.begin -= blocks_of(*weights[i]);
    share.end -= blocks_of(*weights[i]);
  }
}

// Return how many blocks a thread takes at a time: a multiple of the four that vector kernels read together, and few
// enough that threads do not wait long for the last piece.
int64_t blocks_in_piece(const Slice& slice, int threads) {
  constexpr int64_t kTogether = 4;      // blocks
  constexpr int64_t kPieces = 8;        // per thread, at least
  constexpr int64_t kBytes = 1 << 16;  // of a piece's codes, roughly
  int64_t widest = 1;
  for (int i = 0; i < slice.count; ++i)
    widest = std::max(widest, slice.weight[i]->columns_padded * kLanes);
  const int64_t most = std::min(slice.blocks / (threads * kPieces), kBytes / widest);
  return round_up(std::max<int64_t>(1, most), kTogether);
}

// Tell the thread's prefetching (core/ahead.h) the codes of its shares of the next products.
void look_ahead(const Following (&following)[2], int thread, int threads) {
  const int parts = Shares::parts(threads);
  ahead().clear();
  for (const Following& f : following) {
    int64_t blocks = 0;
    for (int i = 0; i < f.count; ++i) blocks += blocks_of(*f.weights[i]);
    by_weight(f.weights, f.count, share_of(thread % parts, parts, blocks, kPair),
              [&](int i, int64_t begin, int64_t end) {
                const Weight& w = *f.weights[i];
                const int64_t bytes = w.columns_padded * (w.nibbles ? kLanes / 2 : kLanes);
                ahead().add(w.codes + begin * bytes, (end - begin) * bytes);
              });
  }
}

// Run the products of a slice. Returns false if there is no memory.
bool multiply_slice(const Slice& slice, const Following (&following)[2], int threads) {
  int64_t work = 0;
  for (int i = 0; i < slice.count; ++i)
    work += slice.product[i].rows * slice.weight[i]->rows * slice.weight[i]->columns;
  if (work < kSerialProduct) threads = 1;
  struct Job {
    const Slice& slice;
    const Following (&following)[2];
    int threads;
    Shares shares;
    std::atomic<bool> out_of_memory{false};
  } job{slice, following, threads, Shares(threads, slice.blocks, blocks_in_piece(slice, threads), kPair)};
  const auto run = [](void* context, int thread) {
    Job& job = *static_cast<Job*>(context);
    const Slice& slice = job.slice;
    uint8_t* scratch = nullptr;
    if (slice.scratch_bytes > 0) {
      scratch = thread_scratch(static_cast<size_t>(slice.scratch_bytes));
      if (scratch == nullptr) return job.out_of_memory.store(true);
    }
    job.shares.take(thread, [&](int64_t begin, int64_t end) {
      by_weight(slice.weight, slice.count, {begin, end}, [&](int i, int64_t first, int64_t stop) {
        slice.multiply[i].run(slice.product[i], first, stop, scratch);
      });
    });
    if (job.threads > 1) look_ahead(job.following, thread, job.threads);
  };
  Pool::shared().run(threads, run, &job);
  return !job.out_of_memory.load();
}

}  // namespace

bool multiply(const Products& all, int threads) {
  const Kernels* kernels = active_kernels();
  int64_t most = all.rows;
  for (int i = 0; i < all.count; ++i) most = std::min(most, rows_at_once(*all.terms[i].weight));
  for (int64_t begin = 0; begin < all.rows; begin += most) {
    Slice slice;
    if (!lay_out(all, begin, std::min(most, all.rows - begin), slice)) return false;
    for (int i = 0; i < all.count; ++i) {
      const Product& p = slice.product[i];
      if (slice.quantizes[i])
        each_row(threads, p.rows, static_cast<double>(p.weight->columns) * kQuantizeNanoseconds,
                 [&](int64_t row) { kernels->quantize(p, row, row + 1); });
    }
    if (!multiply_slice(slice, all.next, threads)) return false;
  }
  return true;
}

}  // namespace zp
