// Structs shared by the core and the kernels: packed weight, quantized input, arguments of a product, kernel table.
//
// This header is compiled once per instruction set level with that level's flags. It holds plain structs only. A
// function here would be compiled for every level, and the linker keeps one copy, which an older CPU might be unable
// to run.
#pragma once

#include <cstdint>

namespace zp {

constexpr int kLanes = 16;  // output channels in a block

// A packed weight: sizes, and pointers into its memory.
//
// Codes lie in blocks of 16 output channels, k is the column. A vector is 64 codes, 4 columns of the 16 channels: one
// operand of VPDPBUSD. 16 vectors are one AMX B tile.
// - 6 to 8 bits: one byte per code, [block][k / 4][channel][k % 4].
// - 2 to 4 bits: nibbles, in bytes [block][k / 8][channel][k % 4]. Every 8 columns, byte j of a channel (j < 4) holds the
//   code of column j in its low half and the code of column j + 4 in its high half, both raised by 8.
// - 5 bits: codes are raised by 16. Nibbles hold their low four bits. `fifth` holds their fifth bits, 64 bits (8 bytes)
//   for each vector: bit 4 * channel + k % 4 belongs to column k.
//
// A segment is a run of columns with one weight scale and one activation scale. The products of its codes are summed
// as int32, and each sum is multiplied by both scales. With two-level scales (`nested`), a group's weight scale is an
// integer times the row's float scale. A sum is multiplied by that integer, so the sums of all segments add up as
// integers.
struct Weight {
  int32_t kind;  // ZP_INTEGER or a float type, as in zp_format
  int64_t rows, columns;
  int64_t blocks;          // of 16 rows, the last may be padded
  int64_t columns_padded;  // to a multiple of k_unit
  int64_t k_unit;          // 64 or 32 (whole AMX tiles), or 8
  int64_t segment;         // columns whose products are summed as integers
  int64_t segments;
  int64_t groups;              // weight scales along a row
  int64_t segments_per_group;  // segments that share a weight scale
  int64_t segments_per_input;  // segments that share an activation scale
  int32_t activation;          // as in zp_format
  int32_t limbs;  // int8 limbs of an activation: 1, or 2 for 16 bits (code = 128 * high limb + low limb)
  bool nibbles;   // codes of 2 to 5 bits: the low four bits are stored as nibbles
  bool fifths;    // codes have 5 bits
  bool asymmetric;
  bool scale_bf16;
  bool nested;               // two-level scales: float per row, integer multiplier per group
  bool scale_by_segment;     // the weight's float scale varies along a row
  bool input_by_segment;     // the activation scale varies along a row
  const uint8_t* codes;      // [blocks][columns_padded / 4][16][4]; nibbles: [blocks][columns_padded / 8][16][4]
  const uint8_t* fifth;      // [blocks][columns_padded / 8][2][64 bits]
  const void* scale;         // [blocks][groups][16], bfloat16 or float; nested: float [blocks][16]
  const int8_t* multiplier;  // nested: [blocks][groups][16]
  const int8_t* zero_point;  // [blocks][groups][16]
};

// The quantized input of a product. Vector kernels read plain rows. AMX reads tiles of 16 rows, stored so that a tile
// load touches consecutive cache lines. `codes` and `sums` have one row per limb of a token, `scale` has one row per
// token. A scale that does not vary along the row is stored for the first segment only. If `int16` is true,
// 16-bit codes are not split into limbs, and `codes` has one row per token.
struct Activations {
  // plain: int8 [row][limb][columns_padded]
  // tiled: int8 [row / 16][limb][k / k_unit][16][k_unit]
  // int16: int16 [row][columns_padded], and unused bytes to the end of a row
  int8_t* codes;
  float* scale;   // plain: [row][segments]; tiled: [row / 16][segment][16]
  int32_t* sums;  // sum of a segment's codes; plain: [row][limb][segments]; tiled: [row / 16][limb][segment][16]
  int64_t token_bytes;  // of a token's codes, all limbs; int16: from one row to the next
  bool tiled;
  bool int16;
  bool limbs_share_tile;  // at most 8 rows: codes are [k / k_unit][limb][8][k_unit], both limbs in one tile
  bool want_sums;         // false: the product does not read `sums`, which need not be filled
};

// Arguments of y = x @ w.T + bias; strides in elements.
struct Product {
  const Weight* weight;
  Activations input;  // quantized input; unused by weights with float input
  const float* x;     // float input [rows][columns]; null if `input` is filled already
  int64_t x_stride;
  int64_t rows;
  const float* bias;
  float* y;
  int64_t y_stride;
};

// The kernels of one instruction set level.
struct Kernels {
  // Quantize rows [begin, end) of product.x into product.input.
  void (*quantize)(const Product& product, int64_t begin, int64_t end);
  // Compute blocks [begin, end) of 16 output channels, for all rows. `integer` reads the quantized input, `floating`
  // the float input. Neither reads `scratch`; the parameter is there because amx_integer has it too.
  void (*integer)(const Product& product, int64_t begin, int64_t end, void* scratch);
  void (*floating)(const Product& product, int64_t begin, int64_t end, void* scratch);
  // Read every byte, to measure memory bandwidth (bandwidth.cpp).
  uint64_t (*stream)(const uint8_t* begin, int64_t bytes);
};

// The kernels of AVX2 and AVX-VNNI for 16-bit input codes. int16_integer takes codes that are not split into limbs; its
// `scratch` has int16_scratch_bytes. few_nibbles takes codes that are split, and weights for which supports_few_nibbles
// is true.
namespace avx2 {
void int16_integer(const Product& product, int64_t begin, int64_t end, void* scratch);
int64_t int16_scratch_bytes();
void few_nibbles(const Product& product, int64_t begin, int64_t end, void* scratch);
bool supports_few_nibbles(const Weight& weight);
}
namespace avxvnni {
void int16_integer(const Product& product, int64_t begin, int64_t end, void* scratch);
int64_t int16_scratch_bytes();
}

// The kernel of AVX-512 for several rows, of weights for which supports_vnni is true. `scratch` has vnni_scratch_bytes.
void vnni_integer(const Product& product, int64_t begin, int64_t end, void* scratch);
int64_t vnni_scratch_bytes(const Weight& weight, int64_t rows);
bool supports_vnni(const Weight& weight);

// AMX has no table of its own: amx_integer replaces `integer` for products of several rows (product.cpp chooses).
// `scratch` holds at least amx_scratch_bytes(weight, product.rows) bytes. supports_amx must be true for the weight.
void amx_integer(const Product& product, int64_t begin, int64_t end, void* scratch);
int64_t amx_scratch_bytes(const Weight& weight, int64_t rows);
bool supports_amx(const Weight& weight);

}  // namespace zp
