// The forms in which codes are stored: part of kernel.cpp and int16.cpp, needs ZP_VEC's vector type.
#pragma once

#include "partial.h"

namespace zp::ZP_LEVEL {
namespace {

// How codes are stored: as bytes, as nibbles, or as nibbles with separate fifth bits.
enum class Stored { kBytes, kNibbles, kFives };

// Constants and the load of a storage form.
template <Stored STORED>
struct Form {
  static constexpr bool kNibbles = STORED != Stored::kBytes;
  static constexpr bool kFifths = STORED == Stored::kFives;
  static constexpr int32_t kOffset = kFifths ? 16 : kNibbles ? 8 : V::kOffsetBytes;  // load adds it to the codes
  static constexpr int64_t kBytesPer8 = kNibbles ? 64 : 128;  // bytes of 8 columns of a block
  static constexpr int64_t kFifthsPer8 = 16;                  // bytes of the fifth bits of 8 columns
  // The distance in bytes from the codes in use to the codes of the same block that are prefetched. For nibbles, 3072
  // and kStreams = 2 were measured together, decoding a model of 1.1B parameters in int4:
  // docs/decisions/decode-blocks.md. For byte codes, no measurement of 2048 is on record.
  static constexpr int64_t kPrefetchBytes = kNibbles ? 3072 : 2048;
  // The most columns whose products a V::ColumnSums can sum.
  static constexpr int64_t kMostColumns = V::most_columns(kNibbles, kFifths);
  // Number of blocks in a tile of one token of two limbs. The codes of each block are one stream from memory.
  static constexpr int kStreams = kNibbles && V::kWide > 2 ? 2 : V::kWide;

  // Load 8 columns of a block: columns 0 to 3 into `first`, 4 to 7 into `second`.
  static void load(const uint8_t* codes, const uint8_t* fifths, V::Codes& first, V::Codes& second) {
    if constexpr (kNibbles) {
      V::load_nibbles(codes, first, second);
      if constexpr (kFifths) V::add_fifths(fifths, first, second);
    } else {
      first = V::load_bytes(codes);
      second = V::load_bytes(codes + 64);
    }
  }
};

}  // namespace
}  // namespace zp::ZP_LEVEL
