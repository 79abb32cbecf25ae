// Tests of extreme values and wrong arguments: numbers beyond float16, infinities and NaN in the input and in the
// cache, sizes that overflow, null pointers, a level chosen while other threads compute.
#include <cfloat>
#include <thread>

#include "levels.h"
#include "steps.h"

namespace {

constexpr int64_t kHuge = INT64_MAX;

bool refused(zp_status status) {
  return status == ZP_INVALID && zp_last_error()[0] != '\0';
}

// -- products --------------------------------------------------------------------------------------------

struct Packed {
  zp_format format;
  zp_weight* weight = nullptr;

  explicit Packed(const zp_format& f) : format(f) {
    const auto size = static_cast<size_t>(f.rows * f.columns);
    if (f.kind == ZP_FLOAT32) {
      const Floats values(size, 0.5f);
      expect(zp_pack_float(&f, values.data(), &weight) == ZP_OK, "pack floats");
      return;
    }
    std::vector<int8_t> codes(size, 3);
    for (size_t i = 0; i < size; i += 3) codes[i] = -2;
    const Floats scale(static_cast<size_t>(f.rows) * (f.group_size > 0 ? f.columns / f.group_size : 1), 0.25f);
    const std::vector<int8_t> zero(scale.size(), 1);
    expect(zp_pack(&f, codes.data(), scale.data(), f.asymmetric != 0 ? zero.data() : nullptr, &weight) == ZP_OK,
           "pack codes");
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  ~Packed() { zp_free(weight); }

  Floats multiply(const Floats& x, int64_t rows) const {
    Floats y(static_cast<size_t>(rows * format.rows), 7.0f);
    expect(zp_linear(weight, x.data(), rows, format.columns, nullptr, y.data(), format.rows, 2) == ZP_OK, "linear");
    return y;
  }
};

// {rows, columns, kind, bits, group, per tensor, asymmetric, activation, its bits, scale type}
const zp_format kFormats[] = {{33, 64, ZP_INTEGER, 8, 0, 0, 0, 0, 16, ZP_SCALE_FLOAT32},
                              {33, 64, ZP_INTEGER, 8, 0, 0, 1, 32, 8, ZP_SCALE_FLOAT32},
                              {33, 64, ZP_INTEGER, 4, 32, 0, 0, 0, 16, ZP_SCALE_NESTED},
                              {33, 64, ZP_INTEGER, 5, 32, 0, 1, 0, 8, ZP_SCALE_FLOAT32},
                              {33, 64, ZP_INTEGER, 4, 32, 0, 1, -1, 0, ZP_SCALE_FLOAT32},
                              {33, 64, ZP_FLOAT32, 0, 0, 0, 0, 0, 0, 0}};

bool all(const Floats& values, size_t begin, size_t count, bool (*good)(float)) {
  return std::all_of(values.begin() + static_cast<long>(begin), values.begin() + static_cast<long>(begin + count),
                     good);
}

// Rows of extreme values next to plain ones: each row gives the same as alone, and NaN and infinity stay in their row.
void test_inputs(int level) {
  for (const zp_format& format : kFormats) {
    const Packed packed(format);
    const auto columns = static_cast<size_t>(format.columns), outputs = static_cast<size_t>(format.rows);
    constexpr int kRows = 9;
    Floats x(kRows * columns);
    for (size_t k = 0; k < columns; ++k) {
      const float plain = static_cast<float>(k % 7) - 3;
      const float rows[kRows] = {plain, 0.0f, FLT_TRUE_MIN * plain, FLT_MIN * plain, 1e30f * plain, plain, plain,
                                 plain, plain};
      for (size_t m = 0; m < kRows; ++m) x[m * columns + k] = rows[m];
    }
    x[6 * columns + 5] = INFINITY;
    x[7 * columns + 63] = NAN;
    const Floats y = packed.multiply(x, kRows);
    char what[100];
    std::snprintf(what, sizeof what, "extremes at level %d, %d bits, activation %d", level, format.bits,
                  format.activation);
    for (size_t m = 0; m < kRows; ++m) {
      const Floats row(x.begin() + static_cast<long>(m * columns), x.begin() + static_cast<long>((m + 1) * columns));
      const Floats alone = packed.multiply(row, 1);
      for (size_t n = 0; n < outputs; ++n)
        expect(alone[n] == y[m * outputs + n] || (std::isnan(alone[n]) && std::isnan(y[m * outputs + n])), what);
    }
    const auto finite = [](float v) { return std::isfinite(v); };
    const auto zero = [](float v) { return v == 0; };
    const auto tiny = [](float v) { return std::fabs(v) < 1e-30f; };
    const auto none = [](float v) { return !std::isfinite(v); };
    expect(all(y, 0, outputs, finite) && all(y, 5 * outputs, outputs, finite), what);
    expect(all(y, outputs, outputs, zero) && all(y, 2 * outputs, 2 * outputs, tiny), what);
    expect(all(y, 6 * outputs, 2 * outputs, none) && all(y, 8 * outputs, outputs, finite), what);
    for (size_t n = 0; n < outputs; ++n)
      expect(std::fabs(y[4 * outputs + n] / 1e30f - y[n]) <= 1e-4f * (1 + std::fabs(y[n])), what);
  }
}

void test_product_sizes() {
  const Packed packed(kFormats[0]);
  float value[64] = {};
  const int64_t ids[] = {0, 32, 33, -1};
  expect(refused(zp_linear(packed.weight, value, kHuge, 64, nullptr, value, 33, 1)), "rows without end");
  expect(refused(zp_linear(packed.weight, value, kHuge / 64, 64, nullptr, value, 33, 1)), "rows that overflow");
  expect(refused(zp_linear(packed.weight, value, 2, kHuge, nullptr, value, 33, 1)), "a stride without end");
  expect(refused(zp_linear(packed.weight, value, 2, 64, nullptr, value, kHuge, 1)), "a stride of the output");
  expect(refused(zp_linear(packed.weight, value, -1, 64, nullptr, value, 33, 1)), "fewer rows than none");
  expect(refused(zp_linear(packed.weight, nullptr, 1, 64, nullptr, value, 33, 1)), "no input");
  expect(refused(zp_linear(packed.weight, value, 1, 64, nullptr, value, 33, 257)), "too many threads");
  expect(refused(zp_rows(packed.weight, ids + 2, 1, value, 64)), "a row beyond the last");
  expect(refused(zp_rows(packed.weight, ids + 3, 1, value, 64)), "a row before the first");
  expect(refused(zp_rows(packed.weight, ids, -1, value, 64)), "fewer ids than none");
  expect(refused(zp_rows(packed.weight, ids, 1, value, 63)), "rows that overlap");
  expect(refused(zp_rows(packed.weight, ids, 1, value, int64_t{1} << 62)), "rows without end");
  expect(zp_rows(packed.weight, ids, 0, value, int64_t{1} << 62) == ZP_OK, "no rows at any stride");
  expect(zp_input_bytes(packed.weight, kHuge) == 0 && zp_input_bytes(packed.weight, kHuge / 128) == 0,
         "an input without end");
  alignas(64) static uint8_t memory[1 << 16];
  for (const int64_t rows : {kHuge, int64_t{1} << 59, int64_t{1} << 58, int64_t{1} << 41})
    for (const int64_t columns : {int64_t{1}, int64_t{64}, int64_t{1} << 40, kHuge}) {
      zp_format format = kFormats[0];
      format.rows = rows, format.columns = columns;
      zp_weight* weight = nullptr;
      expect(refused(zp_check(&format)), "a weight without end");
      expect(refused(zp_view(&format, memory, sizeof memory, &weight)) && weight == nullptr, "a view of it");
      format = kFormats[5];
      format.rows = columns, format.columns = rows;
      expect(refused(zp_view(&format, memory, sizeof memory, &weight)) && weight == nullptr, "and of floats");
    }
}

void test_codes() {
  zp_format format = kFormats[2];
  format.rows = 1;
  std::vector<int8_t> codes(64, 7);
  const float scale[] = {1, 1};
  const int8_t zero[] = {-97, 0};
  zp_weight* weight = nullptr;
  codes[9] = 8;
  expect(refused(zp_pack(&format, codes.data(), scale, nullptr, &weight)), "a code of 5 bits in 4");
  codes[9] = -9;
  expect(refused(zp_pack(&format, codes.data(), scale, nullptr, &weight)), "one below");
  codes[9] = -8;
  format.scale_type = ZP_SCALE_FLOAT32, format.asymmetric = 1;
  expect(refused(zp_pack(&format, codes.data(), scale, zero, &weight)), "a zero point far away");
  expect(refused(zp_pack(&format, nullptr, scale, zero, &weight)), "no codes");
}

// zp_multiply refuses an input that zp_quantize laid out for another weight or number of rows.
void test_halves() {
  const Packed packed(kFormats[0]), other(kFormats[1]);
  Floats x(8 * 64, 1.0f), y(8 * 33);
  void* memory = nullptr;
  expect(posix_memalign(&memory, 64, zp_input_bytes(packed.weight, 8)) == 0, "memory");
  expect(refused(zp_quantize(packed.weight, x.data(), 8, 64, static_cast<uint8_t*>(memory) + 8, 1)), "not aligned");
  expect(zp_quantize(packed.weight, x.data(), 8, 64, memory, 1) == ZP_OK, "quantize");
  expect(zp_multiply(packed.weight, memory, 8, nullptr, y.data(), 33, 1) == ZP_OK &&
             y == packed.multiply(x, 8),
         "both halves");
  expect(refused(zp_multiply(packed.weight, memory, 7, nullptr, y.data(), 33, 1)), "other rows");
  expect(refused(zp_multiply(other.weight, memory, 8, nullptr, y.data(), 33, 1)), "another weight");
  std::free(memory);
}

void test_quantizer_sizes() {
  const float value[64] = {};
  float out[64] = {};
  int8_t codes[64] = {};
  const int64_t order[] = {0};
  zp_divergence_row row{};
  const auto groups = [&](int64_t rows, int64_t columns, int64_t size) {
    return zp_groups{value, rows, columns, size, -8, 7};
  };
  for (const zp_groups& g : {groups(kHuge, 1, 1), groups(1, kHuge, 1), groups(1, 1, kHuge), groups(-1, 1, 1),
                             groups(1 << 30, 1 << 30, 8), zp_groups{nullptr, 1, 1, 1, -8, 7}}) {
    expect(refused(zp_grid_search(&g, value, value, 1, out, out, out, nullptr, 1)), "a search");
    expect(refused(zp_grid_errors(&g, value, 1, value, nullptr, out, 1)), "errors");
    expect(refused(zp_round_columns(&g, value, nullptr, value, order, codes, 1)), "columns");
    expect(refused(zp_descend_columns(&g, value, nullptr, value, 1, codes, 1)), "descent");
  }
  const zp_groups one = groups(1, 1, 1), wide = groups(1, int64_t{1} << 30, 8);
  expect(refused(zp_grid_errors(&one, value, kHuge, value, nullptr, out, 1)), "grids without end");
  expect(refused(zp_grid_errors(&one, value, -1, value, nullptr, out, 1)), "fewer grids than none");
  expect(refused(zp_grid_search(&one, nullptr, value, 1, out, out, out, nullptr, 1)), "no importance");
  expect(refused(zp_grid_search(&one, value, value, kHuge, out, out, out, nullptr, 1)), "fractions without end");
  expect(refused(zp_round_columns(&wide, value, nullptr, value, order, codes, 1)), "a square without end");
  expect(refused(zp_descend_columns(&one, value, nullptr, nullptr, 1, codes, 1)), "no Hessian");
  expect(refused(zp_round_columns(&one, value, nullptr, value, nullptr, codes, 1)), "no order");
  expect(refused(zp_divergence(value, kHuge, value, kHuge, order, 2, 1, &row, 1)), "strides without end");
  expect(refused(zp_divergence(value, 1, value, 1, order, kHuge, 1, &row, 1)), "rows without end");
  expect(refused(zp_divergence(value, 1, value, 1, nullptr, 1, 1, &row, 1)), "no targets");
  double rate = 0;
  expect(refused(zp_read_bandwidth(SIZE_MAX, 1, 1, &rate)), "memory without end");
}

// -- the decoder -----------------------------------------------------------------------------------------

constexpr int kTypes[] = {ZP_CACHE_FLOAT16, ZP_CACHE_INT8, ZP_CACHE_FLOAT32};

// Return random tokens without kDamagedToken.
std::vector<int32_t> sound_tokens(const Model& m, int count, std::mt19937& random) {
  return random_tokens(m, count, random, kDamagedToken + 1);
}

// Some tokens have values beyond float16. Every type of cache stores them; a float16 cache becomes wide, and gives the
// same bits for any chunks of the tokens.
void test_overflow(int level, std::mt19937& random) {
  for (const int window : {0, 9}) {
    const auto m = make(small_config(), {.window = window, .value_scale = 17000}, random);
    const auto tokens = sound_tokens(*m, 100, random);
    const auto expected = Reference(*m).logits(tokens);
    char what[100];
    std::snprintf(what, sizeof what, "values beyond half precision at level %d, window %d", level, window);
    const Cache early(*m, 300, 1);
    const size_t before = zp_cache_bytes(early.cache);
    expect(zp_cache_is_wide(early.cache) == 0, what);
    const Floats whole = feed(*m, early, tokens, 100);
    expect(zp_cache_is_wide(early.cache) == 1 && zp_cache_bytes(early.cache) == 2 * before, what);
    expect(difference(whole, expected) < 1e-2, what);
    const Cache later(*m, 300, 1);
    expect(zp_cache_is_wide(later.cache) == 1, "a decoder remembers");
    expect(feed(*m, later, tokens, 37, 2) == whole, what);
    for (const int type : {ZP_CACHE_INT8, ZP_CACHE_FLOAT32}) {
      const Cache cache(*m, 300, 1, type);
      expect(difference(feed(*m, cache, tokens, 64), expected) < (type == ZP_CACHE_INT8 ? 0.12 : 1e-4), what);
      expect(zp_cache_is_wide(cache.cache) == 0, "not for the others");
    }
  }
}

// A cache that becomes wide in the middle of a text gives the same as one that was wide from the start.
void test_widening(std::mt19937& random) {
  for (int attempt = 0; attempt < 3; ++attempt) {
    const unsigned seed = random();
    std::mt19937 same(seed), again(seed);
    const Options options{.value_scale = 14000};
    const auto m = make(small_config(), options, same), fresh = make(small_config(), options, again);
    const auto tokens = sound_tokens(*m, 90, random);
    const Cache by_token(*m, 300, 1), at_once(*fresh, 300, 1);
    expect(feed(*m, by_token, tokens, 1) == feed(*fresh, at_once, tokens, 90), "one token after the other");
  }
}

// A token whose embedding is NaN or infinite does not change the logits of the tokens before it.
void test_poison(int level, std::mt19937& random) {
  for (const float damage : {NAN, INFINITY}) {
    for (const int window : {0, 5}) {
      const auto m = make(small_config(), {.window = window, .damage = damage}, random);
      const auto vocab = static_cast<size_t>(m->config.vocab);
      auto tokens = sound_tokens(*m, 80, random);
      constexpr size_t kAt = 70;
      tokens[kAt] = kDamagedToken;
      const std::vector<int32_t> sound(tokens.begin(), tokens.begin() + kAt);
      for (const int type : kTypes) {
        const Cache cache(*m, 300, 1, type), alone(*m, 300, 1, type);
        const Floats before = feed(*m, alone, sound, 70), found = feed(*m, cache, tokens, 80, 2);
        char what[100];
        std::snprintf(what, sizeof what, "a damaged token at level %d, cache type %d, window %d", level, type, window);
        expect(std::memcmp(before.data(), found.data(), before.size() * sizeof(float)) == 0, what);
        expect(std::none_of(found.begin() + kAt * static_cast<long>(vocab),
                            found.begin() + (kAt + 1) * static_cast<long>(vocab),
                            [](float v) { return std::isfinite(v); }),
               "its own logits say so");
      }
    }
  }
}

void test_decoder_sizes(std::mt19937& random) {
  const auto m = make(small_config(), {}, random);
  zp_cache* none = nullptr;
  for (const int64_t tokens : {kHuge, int64_t{-1}, int64_t{1} << 40})
    expect(refused(zp_cache_create(m->decoder, tokens, 1, 0, &none)) && none == nullptr, "a cache without end");
  expect(refused(zp_cache_create(m->decoder, 10, -1, 0, &none)), "fewer sequences than none");
  expect(refused(zp_cache_create(nullptr, 10, 1, 0, &none)), "a cache of no decoder");
  const Cache cache(*m, 300, 1);
  const int32_t zero = 0;
  float logits[50];
  const auto step = [&](int64_t count) {
    return zp_forward(m->decoder, cache.cache, count, &zero, &zero, &zero, nullptr, logits, 1);
  };
  const int64_t beyond = zp_cache_pages(cache.cache) * 64 + 1;  // one token more than all pages hold
  expect(refused(step(kHuge)) && refused(step(-1)) && refused(step(beyond)), "a step without end");
  expect(refused(zp_forward(m->decoder, cache.cache, 1, nullptr, &zero, &zero, nullptr, logits, 1)), "no tokens");
  expect(refused(zp_forward(m->decoder, cache.cache, 1, &zero, &zero, &zero, nullptr, nullptr, 1)), "no logits");
  expect(refused(zp_forward(nullptr, cache.cache, 1, &zero, &zero, &zero, nullptr, logits, 1)), "no decoder");
  expect(zp_cache_length(nullptr, 0) == -1 && zp_cache_is_wide(nullptr) == 0 && zp_cache_bytes(nullptr) == 0,
         "no cache");
  expect(refused(zp_cache_truncate(cache.cache, 0, -1)) && refused(zp_cache_truncate(nullptr, 0, 0)), "a bad cut");
  zp_decoder_config c = small_config();
  zp_decoder* decoder = nullptr;
  c.hidden = INT32_MAX;
  expect(refused(zp_decoder_create(&c, &decoder)), "a decoder without end");
}

// One thread computes while another selects levels: each selection is refused, or happens between two steps.
void test_switching(std::mt19937& random) {
  const int32_t best = zp_isa_active();
  const auto m = make(small_config(), {.kind = Kind::kInt8}, random);
  const auto tokens = sound_tokens(*m, 60, random);
  std::vector<Floats> expected;
  for (int level = 0; level < ZP_ISA_COUNT; ++level)
    if (zp_isa_select(level) == ZP_OK) expected.push_back(feed(*m, Cache(*m, 300, 1), tokens, 60));
  std::atomic<bool> done{false};
  std::thread chooser([&] {
    for (int level = 0; !done.load(); level = (level + 1) % ZP_ISA_COUNT) zp_isa_select(level);
  });
  bool good = true;
  for (int i = 0; i < 20; ++i) {
    const Floats found = feed(*m, Cache(*m, 300, 1), tokens, 60);
    good = good && std::find(expected.begin(), expected.end(), found) != expected.end();
  }
  done.store(true);
  chooser.join();
  expect(good, "a level is that of a whole step");
  expect(zp_isa_select(best) == ZP_OK, "select again");
}

}  // namespace

int main(int count, char** arguments) {
  std::mt19937 random(5);
  test_product_sizes();
  test_codes();
  test_halves();
  test_quantizer_sizes();
  test_decoder_sizes(random);
  test_widening(random);
  for (const int level : levels_of(count, arguments)) {
    expect(zp_isa_select(level) == ZP_OK, "select");
    test_inputs(level);
    test_overflow(level, random);
    test_poison(level, random);
  }
  test_switching(random);
  return report();
}
