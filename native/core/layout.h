// What the kernels share: the packed weight, one product's arguments, and the table a level fills.
//
// This header is compiled with every level's flags, so it holds plain structs only: an inline or
// template function here could be merged by the linker into code for a lesser CPU.
#pragma once

#include <cstdint>

namespace zp {

constexpr int kLanes = 16;  // output channels in a block

// Codes lie in blocks of 16 output channels: [block][k / 4][channel][k % 4]. That is the operand of
// VPDPBUSD and, 16 (k / 4)s long, an AMX B tile. Nibbles: a 64-byte line holds two such vectors, the
// first in the low halves, as code + 8. Of 5 bits the lower four are nibbles, and the fifth ones lie apart, 64
// to a vector: of code + 16.
//
// Integers are summed over a segment, within which no scale varies. Nested scales vary along a row by whole
// multiples only, so that a row is summed as integers to its end.
struct Weight {
  int32_t kind;  // as in zp_format, like `activation`
  int64_t rows, columns;
  int64_t blocks;          // of 16 rows, the last may be padded
  int64_t columns_padded;  // to a multiple of k_unit
  int64_t k_unit;          // 64 or 32 (whole AMX tiles), or 8
  int64_t segment;         // columns whose products are summed as integers
  int64_t segments;
  int64_t groups;              // scales along a row
  int64_t segments_per_group;  // of the weight
  int64_t segments_per_input;  // of the activation
  int32_t activation;
  int32_t limbs;  // int8 limbs of an activation: 1, or 2 for 16 bits (code = 128 * second + first)
  bool nibbles;  // of codes of at most 5 bits
  bool fifths;   // and of 5 bits
  bool asymmetric;
  bool scale_bf16;
  bool nested;
  bool scale_by_segment;     // the weight's float scale differs along a row
  bool input_by_segment;     // so does the activation scale
  const uint8_t* codes;      // [blocks][columns_padded / 4][16][4]
  const uint8_t* fifth;      // [blocks][columns_padded / 8][2][64 bits]
  const void* scale;         // [blocks][groups][16], bfloat16 or float; nested: float [blocks][16]
  const int8_t* multiplier;  // nested: [blocks][groups][16]
  const int8_t* zero_point;  // [blocks][groups][16]
};

// Quantized activations. Vector kernels read plain rows; AMX reads 16-row tiles, so that a tile load
// touches consecutive lines. Codes and sums have a row for each limb of a token, scales have one for each
// token; a scale that does not vary along the row is there for the first segment only.
struct Activations {
  int8_t* codes;  // plain: [row][limb][columns_padded]; tiled: [row / 16][limb][k / k_unit][16][k_unit]
  float* scale;   // plain: [row][segments]; tiled: [row / 16][segment][16]
  // Of the codes of a segment. Plain: [row][limb][segments]; tiled: [row / 16][limb][segment][16].
  int32_t* sums;
  bool tiled;
  bool limbs_share_tile;  // at most 8 rows: [k / k_unit][limb][8][k_unit], which is one tile
  bool want_sums;          // false: the product does not read them
};

struct Product {
  const Weight* weight;
  Activations input;
  const float* x;  // float input, for weight-only products
  int64_t x_stride;
  int64_t rows;
  const float* bias;
  float* y;
  int64_t y_stride;
};

struct Kernels {
  // Rows [begin, end) of product.x into product.input.
  void (*quantize)(const Product& product, int64_t begin, int64_t end);
  // 16-channel blocks [begin, end) of the output. `scratch` has scratch_bytes(weight).
  void (*integer)(const Product& product, int64_t begin, int64_t end, void* scratch);
  void (*floating)(const Product& product, int64_t begin, int64_t end, void* scratch);
  uint64_t (*stream)(const uint8_t* begin, int64_t bytes);  // reads every byte
};

namespace scalar {
const Kernels* kernels();
}
namespace avx2 {
const Kernels* kernels();
}
namespace avx512 {
const Kernels* kernels();
}

// AMX replaces only the integer product of several rows.
void amx_integer(const Product& product, int64_t begin, int64_t end, void* scratch);
int64_t amx_scratch_bytes(const Weight& weight, int64_t rows);

}  // namespace zp
