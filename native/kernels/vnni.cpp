// The integer product of several rows on AVX-512 VNNI. VPDPBUSD multiplies 64 unsigned bytes (weights) by 64 signed
// ones (input codes), and adds four products to each int32 lane.
//
// A panel is a part of the columns of three blocks of weights, as unsigned bytes: codes are widened, multiplied by the
// multipliers of two-level scales, and raised by 128. It stays in the first-level cache while all rows are multiplied
// by it. kernel.cpp multiplies fewer rows, and reads the weights as they are stored.
//
// The kernel in vnni_whole.h sums whole rows as integers. The kernel in vnni_segments.h sums each segment (a run of
// columns with one weight scale and one input scale) as integers, and adds the scaled sums as floats.
#include "vnni_segments.h"
#include "vnni_whole.h"

namespace zp {

bool supports_vnni(const Weight& w) {
  return sums_whole_rows(w) ? w.k_unit == kWholeUnit : w.k_unit >= 32 && joins_exactly(w);
}

int64_t vnni_scratch_bytes(const Weight& w, int64_t rows) {
  return sums_whole_rows(w) ? WholeScratch::bytes(w, rows) : SegmentScratch::bytes(w, rows);
}

void vnni_integer(const Product& p, int64_t begin, int64_t end, void* scratch) {
  auto* memory = static_cast<uint8_t*>(scratch);
  sums_whole_rows(*p.weight) ? whole_rows(p, begin, end, memory) : by_segments(p, begin, end, memory);
}

}  // namespace zp
