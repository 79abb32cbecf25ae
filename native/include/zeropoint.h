/* The C interface of Zeropoint's CPU kernels and decoder.
 *
 * Errors: most functions return a zp_status; the descriptions of the others say what they return instead. After a
 * status other than ZP_OK, zp_last_error() returns the message, in the thread that made the call. No exception leaves
 * the library.
 * Threads: all functions may be called from several threads at once. Calls that use several threads take turns on one
 * shared pool. If the system refuses to start a thread, the others do its work.
 * Sizes: arrays have at most 2^40 values; larger or negative sizes are ZP_INVALID. Matrices are row-major. Strides
 * count elements.
 */
#ifndef ZEROPOINT_H
#define ZEROPOINT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZP_API __attribute__((visibility("default")))

/* Incremented when a function or struct of this file changes; the Python loader refuses any other version. */
#define ZP_ABI_VERSION 3

typedef enum { ZP_OK = 0, ZP_INVALID = 1, ZP_UNSUPPORTED = 2, ZP_NO_MEMORY = 3 } zp_status;

/* Instruction set levels: any CPU's, those of x86, those of ARM64; the levels of a CPU are slowest first. */
typedef enum {
  ZP_SCALAR = 0,
  ZP_AVX2 = 1,
  ZP_AVXVNNI = 2, /* AVX2 with AVX-VNNI */
  ZP_AVX512 = 3,  /* with VNNI */
  ZP_AMX = 4,
  ZP_NEON = 5,
  ZP_DOTPROD = 6, /* FEAT_DotProd: SDOT */
  ZP_I8MM = 7,    /* FEAT_I8MM: SMMLA */
  ZP_ISA_COUNT = 8
} zp_isa;

/* Values of zp_format.activation besides a group size: float input, or one scale per token. */
enum { ZP_ACTIVATION_FLOAT = -1, ZP_ACTIVATION_TOKEN = 0 };

/* How scales are stored. ZP_SCALE_NESTED is the two-level scale: scale = multiplier * base, with one float base per row
 * and one int8 multiplier per group. The multiplier's magnitude is 1 to 15, or 1 to 7 for 5-bit codes. Two-level scales
 * need a symmetric weight with groups and at most 5 bits. */
enum { ZP_SCALE_FLOAT32 = 0, ZP_SCALE_BFLOAT16 = 1, ZP_SCALE_NESTED = 2 };

/* The type of a weight's values. */
enum { ZP_INTEGER = 0, ZP_FLOAT16 = 1, ZP_BFLOAT16 = 2, ZP_FLOAT32 = 3 };

/* The format of a weight [rows, columns] = [out, in] and of its input. Weights of a float type take float input; their
 * fields from `bits` to `scale_type` are 0 (`activation` too: its values apply to ZP_INTEGER only). */
typedef struct {
  int64_t rows;
  int64_t columns;
  int32_t kind;            /* ZP_INTEGER or a float type */
  int32_t bits;            /* 2 to 8; codes of up to 4 bits take half a byte, of 5 bits 5/8, of more bits one byte */
  int32_t group_size;      /* input channels that share a scale, a multiple of 8; 0: the whole row */
  int32_t per_tensor;      /* 1: one scale (and zero point) for the weight; group_size is 0 */
  int32_t asymmetric;      /* 1: the weight has zero points */
  int32_t activation;      /* input channels of a token that share an activation scale: a multiple of 8, and a multiple
                              or divisor of group_size; or ZP_ACTIVATION_TOKEN (all), or ZP_ACTIVATION_FLOAT (the input
                              is not quantized) */
  int32_t activation_bits; /* 8; 16 (two int8 limbs, ZP_ACTIVATION_TOKEN only); 0 for ZP_ACTIVATION_FLOAT */
  int32_t scale_type;      /* ZP_SCALE_... */
} zp_format;

typedef struct zp_weight zp_weight;

ZP_API int32_t zp_abi_version(void);
ZP_API const char* zp_last_error(void);

/* Return ZP_OK if zp_pack accepts the format. Formats of a float type are ZP_UNSUPPORTED: zp_pack_float packs them. */
ZP_API zp_status zp_check(const zp_format* format);

/* Pack codes [rows, columns] with scales and zero points, both [rows, groups] (per_tensor: one value), where
 * w = (code - zero_point) * scale. `zero_point` is null for a symmetric weight. Codes of up to 4 bits are -8 to 7, of 5
 * bits -16 to 15; their zero points are -96 to 96. The packed bytes do not depend on the instruction set. The caller
 * frees the weight with zp_free. */
ZP_API zp_status zp_pack(const zp_format* format, const int8_t* codes, const float* scale,
                         const int8_t* zero_point, zp_weight** out);

/* Pack float weights: values [rows, columns] of type format.kind, which is not ZP_INTEGER. */
ZP_API zp_status zp_pack_float(const zp_format* format, const void* values, zp_weight** out);

/* Unpack exactly what zp_pack packed: codes [rows, columns], scales and zero points [rows, groups]. `zero_point` is
 * null for a symmetric weight. A weight with one scale per row or per tensor is unpacked with one group per row. */
ZP_API zp_status zp_unpack(const zp_weight* weight, int8_t* codes, float* scale, int8_t* zero_point);

ZP_API void zp_free(zp_weight* weight);
ZP_API size_t zp_weight_bytes(const zp_weight* weight);

/* zp_weight_memory returns a pointer to the packed bytes, zp_weight_bytes their number. zp_view makes a weight of
 * packed bytes, such as those of a mapped file, without a copy: `memory` must be 64-byte aligned and outlive the
 * weight. */
ZP_API const void* zp_weight_memory(const zp_weight* weight);
ZP_API zp_status zp_view(const zp_format* format, const void* memory, size_t bytes, zp_weight** out);

/* Compute y[m, n] = sum_k x[m, k] * w[n, k] + bias[n]. `bias` may be null. If the format says so, x is quantized first.
 * A row's result depends neither on `threads` nor on the other rows of the call. */
ZP_API zp_status zp_linear(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride,
                           const float* bias, float* y, int64_t y_stride, int32_t threads);

/* zp_linear in two steps, for weights with quantized input: zp_quantize quantizes x into `input`, 64-byte aligned
 * memory of zp_input_bytes; zp_multiply multiplies `input` by a weight. zp_input_bytes returns 0 for weights with float
 * input, for a null weight and for a number of rows that is negative or too large.
 *
 * Several weights can share an input if zp_quantize and zp_multiply get the same `rows`, and the weights agree in
 * - columns, activation and activation_bits;
 * - group_size, and whether scale_type is ZP_SCALE_NESTED;
 * - whether the product needs the sums of the input's codes: asymmetric, and 6 to 8 bits;
 * - with activation_bits 16, whether the weight has at most 5 bits.
 * So weights whose formats differ in `rows` only can share an input. Weights with another group_size or scale_type can
 * share one too, if their layouts have in common
 * - the segment: the number of columns whose products are summed as integers;
 * - the unit of columns to which a row is padded;
 * - whether a float scale varies along a row: group_size is 1 to columns - 1, scale_type is not ZP_SCALE_NESTED.
 *
 * zp_quantize writes its layout to the first 64 bytes of `input`. zp_multiply returns ZP_INVALID for an input whose
 * layout the weight cannot read, for another number of rows, and after zp_isa_select to a level with another layout. */
ZP_API size_t zp_input_bytes(const zp_weight* weight, int64_t rows);
ZP_API zp_status zp_quantize(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride,
                             void* input, int32_t threads);
ZP_API zp_status zp_multiply(const zp_weight* weight, void* input, int64_t rows, const float* bias, float* y,
                             int64_t y_stride, int32_t threads);

/* Dequantize rows: out[i, :] = w[ids[i], :], for i < count. Returns ZP_INVALID for an id outside the weight, if
 * out_stride < columns, or if count * out_stride exceeds 2^40. */
ZP_API zp_status zp_rows(const zp_weight* weight, const int64_t* ids, int64_t count, float* out,
                         int64_t out_stride);

/* Two models' predictions of one token compared. */
typedef struct {
  double divergence;     /* KL(p || q) in nats */
  double p_loss, q_loss; /* -ln p[target], -ln q[target] */
  int32_t agrees;        /* 1 if both have the same argmax token (ties: lowest id) */
} zp_divergence_row;

/* Compare `rows` rows of `count` logits each; p is the reference model, q the candidate. `targets` [rows] are
 * the tokens that followed. Logits are finite, or -infinity for a masked token. For the divergence, a logit more than
 * 10000 below its model's largest logit is raised to that limit, so the divergence stays finite if only one model masks
 * a token. */
ZP_API zp_status zp_divergence(const float* p, int64_t p_stride, const float* q, int64_t q_stride,
                               const int64_t* targets, int64_t rows, int64_t count, zp_divergence_row* out,
                               int32_t threads);

/* -- quantizing weights ---------------------------------------------------------------------------
 *
 * A weight [rows, columns] in groups of `group_size` columns, the last of which may be shorter, and the range of codes
 * [qmin, qmax]. Values per group are [rows, groups]. `importance` [columns] weights the squared error of each column.
 * Results depend neither on `threads` nor on the instruction set. */
typedef struct {
  const float* weight;
  int64_t rows, columns, group_size;
  int32_t qmin, qmax;
} zp_groups;

/* Search the scale and zero point of each group x. A candidate scale s and zero point z give levels
 * L = clamp(round(x / s) + z) - z; for these levels the best scale is (x . L) / (L . L). The candidate with the least
 * error at its best scale wins: `scale` gets that scale, `zero` gets z. `zero` null: symmetric, z is 0.
 * `parts` [count] are the fractions f of the group's range that candidates cover.
 * - Symmetric: s = f * w / qmin for each f, where w is the weight of largest magnitude. So f * w lands on qmin, and s
 *   has the opposite sign to w. Exception: if qmin is -qmax, s is f * |w| / qmax, which is positive.
 * - Asymmetric: a candidate is a pair of fractions, one for the smallest weight and one for the largest. All pairs are
 *   tried.
 * `low` gets min(0, smallest weight of the group), `high` max(0, largest weight). */
ZP_API zp_status zp_grid_search(const zp_groups* groups, const float* importance, const float* parts,
                                int64_t count, float* low, float* high, float* scale, float* zero,
                                int32_t threads);

/* Compute the weighted squared error of each group for each of `grids` choices of scale and zero point. `scale`, `zero`
 * (null: 0) and `error` are [grids, rows, groups]. */
ZP_API zp_status zp_grid_errors(const zp_groups* groups, const float* importance, int64_t grids,
                                const float* scale, const float* zero, float* error, int32_t threads);

/* GPTQ error propagation: for j from the last to the first, round column order[j] to the level nearest to
 * its weight + sum_{i > j} ratio[j, i] * (error left in column order[i]). `order` [columns] and `ratio`
 * [columns, columns] are inputs, as are `scale` and `zero` (null: 0); `codes` [rows, columns] is the result. */
ZP_API zp_status zp_round_columns(const zp_groups* groups, const float* scale, const float* zero,
                                  const float* ratio, const int64_t* order, int8_t* codes, int32_t threads);

/* Coordinate descent on E H E' of each row, with E = weight - dequantized codes: replace one column of codes after the
 * other, `sweeps` times over all columns. Column j gets the code nearest to code_j + (H E)_j / (H_jj * scale).
 * `codes` [rows, columns] is changed in place; `zero` null: 0. `hessian` [columns, columns] is symmetric with a
 * positive diagonal. */
ZP_API zp_status zp_descend_columns(const zp_groups* groups, const float* scale, const float* zero,
                                    const float* hessian, int64_t sweeps, int8_t* codes, int32_t threads);

/* Return a bit set: bit i is set if this CPU and operating system can run level i. */
ZP_API uint32_t zp_isa_levels(void);
/* Return the level in use; negative if ZEROPOINT_ISA names a level that does not exist or cannot run here, and
 * zp_last_error() says so. */
ZP_API int32_t zp_isa_active(void);
/* Choose the level of this process. Returns ZP_UNSUPPORTED while another thread computes. */
ZP_API zp_status zp_isa_select(int32_t level);

/* Measure memory bandwidth: read `bytes` of memory (1 MiB to 1 TiB) `repeats` times; `rate` is the best, in bytes per
 * second. */
ZP_API zp_status zp_read_bandwidth(size_t bytes, int32_t threads, int32_t repeats, double* rate);

/* -- the decoder: a forward step of a causal language model ---------------------------------------
 *
 *   x = embedding[token] * embedding_scale (+ positions[position]), then the embedding norm
 *   each layer:  a = attention(norm(x));  x += post_norm(a) * residual_scale
 *                m = mlp(norm(x));        x += post_norm(m) * residual_scale
 *     parallel:  x += attention(norm(x)) + mlp(mlp_norm(x)), both from the same x; without ZP_MLP_NORM
 *                the MLP reads norm(x) too
 *   logits = softcap(head(norm(x)) * logit_scale)
 *
 * A norm that zp_decoder_norm does not set is left out. For norms that multiply by 1 + w, pass 1 + w. */

typedef struct zp_decoder zp_decoder;
typedef struct zp_cache zp_cache;

enum { ZP_NORM_RMS = 0, ZP_NORM_LAYER = 1 };
/* Rotary position embedding: rotate channels i and i + rotary_dim / 2 together (HALVES), or 2 i and 2 i + 1 (PAIRS). */
enum { ZP_ROPE_NONE = 0, ZP_ROPE_HALVES = 1, ZP_ROPE_PAIRS = 2 };
enum { ZP_SILU = 0, ZP_GELU = 1, ZP_GELU_TANH = 2, ZP_RELU = 3 };

enum { ZP_MAX_ROPE_TABLES = 2 };

typedef struct {
  int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
  int32_t max_positions; /* zp_forward refuses a position at or beyond it */
  int32_t norm;          /* ZP_NORM_... */
  float norm_eps;
  int32_t rope;       /* ZP_ROPE_... */
  int32_t rotary_dim; /* channels of each head that are rotated, from the first on; even */
  int32_t activation; /* ZP_SILU ... */
  int32_t gated;      /* 1: down(activation(gate(x)) * up(x)); 0: down(activation(up(x))) */
  int32_t parallel;   /* 1: attention and MLP read the same x, see above */
  float embedding_scale; /* 1: none */
  float residual_scale;  /* 1: none */
  float logit_scale;     /* 1: none */
  float attention_scale;   /* factor of the scores q . k */
  float attention_softcap; /* c: score becomes c * tanh(score / c); 0: none */
  float logit_softcap;     /* the same for logits */
} zp_decoder_config;

/* Slots of zp_decoder_linear. The last three belong to the model: their layer is -1. */
typedef enum {
  ZP_Q,
  ZP_K,
  ZP_V,
  ZP_O,
  ZP_GATE,
  ZP_UP,
  ZP_DOWN,
  ZP_EMBEDDING,
  ZP_POSITIONS, /* optional; at least max_positions rows */
  ZP_HEAD, /* tied to the embedding: pass the same weight for both */
  ZP_LINEAR_COUNT
} zp_linear_slot;

/* Slots of zp_decoder_norm. Those from ZP_EMBEDDING_NORM on belong to the model: their layer is -1. */
typedef enum {
  ZP_ATTENTION_NORM,
  ZP_POST_ATTENTION_NORM,
  ZP_MLP_NORM,
  ZP_POST_MLP_NORM,
  ZP_Q_NORM,
  ZP_K_NORM, /* Q and K norms come before the rotation; they have head_dim values, or (kv_)heads * head_dim */
  ZP_EMBEDDING_NORM,
  ZP_FINAL_NORM,
  ZP_NORM_COUNT
} zp_norm_slot;

/* Create a decoder without weights; `config` is copied. zp_decoder_finish makes it usable. */
ZP_API zp_status zp_decoder_create(const zp_decoder_config* config, zp_decoder** out);
ZP_API void zp_decoder_free(zp_decoder* decoder);
/* Set a layer's sliding window, in positions including the token's own (0: all), and its rotation table. */
ZP_API zp_status zp_decoder_layer(zp_decoder* decoder, int32_t layer, int32_t window, int32_t table);
/* Set a rotation table: angle i is position * inverse_frequency[i], i < count = rotary_dim / 2. Cosine and sine are
 * multiplied by `scale`. */
ZP_API zp_status zp_decoder_rope(zp_decoder* decoder, int32_t table, const float* inverse_frequency,
                                 int32_t count, float scale);
/* Set the weight of a slot, and its bias [rows] or null. The weight must outlive the decoder; the bias is copied. */
ZP_API zp_status zp_decoder_linear(zp_decoder* decoder, int32_t layer, int32_t slot, const zp_weight* weight,
                                   const float* bias);
/* Set a norm's weight [count] and bias [count]. `bias` may be null, `weight` may not. Both are copied. */
ZP_API zp_status zp_decoder_norm(zp_decoder* decoder, int32_t layer, int32_t slot, const float* weight,
                                 const float* bias, int32_t count);
/* Make the decoder usable. Returns ZP_INVALID if a weight or rotation table is missing. It cannot be changed later. */
ZP_API zp_status zp_decoder_finish(zp_decoder* decoder);

/* How a cache stores keys and values. float16 holds numbers up to 65504. At the first larger key or value a
 * ZP_CACHE_FLOAT16 cache becomes wide: it stores float32 from then on, but still rounds to float16 what float16 can
 * hold, so results do not depend on when the cache became wide. Later ZP_CACHE_FLOAT16 caches of the same decoder are
 * wide from the start. */
enum { ZP_CACHE_FLOAT16 = 0, ZP_CACHE_INT8 = 1, ZP_CACHE_FLOAT32 = 2 };

/* Tokens that a page holds. A cache consists of pages, and a sequence has as few as hold its tokens. */
enum { ZP_PAGE = 64 };

/* Create a cache for keys and values of `sequences` sequences (1 to 2^20). It has enough pages for `tokens` tokens (1
 * to 2^31) in all, however they are split among the sequences. A step fits if there are free pages for it. */
ZP_API zp_status zp_cache_create(const zp_decoder* decoder, int64_t tokens, int32_t sequences, int32_t type,
                                 zp_cache** out);
ZP_API void zp_cache_free(zp_cache* cache);
/* Make room for `tokens` tokens in all. Cached tokens stay. A cache never shrinks. On an error it is unchanged. */
ZP_API zp_status zp_cache_grow(zp_cache* cache, int64_t tokens);
ZP_API size_t zp_cache_bytes(const zp_cache* cache);
/* Return the number of pages; 0 for a null cache. */
ZP_API int64_t zp_cache_pages(const zp_cache* cache);
/* Return the number of pages that no sequence uses; 0 for a null cache. */
ZP_API int64_t zp_cache_free_pages(const zp_cache* cache);
/* Return 1 for a wide ZP_CACHE_FLOAT16 cache, else 0. */
ZP_API int32_t zp_cache_is_wide(const zp_cache* cache);
/* Return the number of cached tokens of a sequence; -1 if there is no such sequence. */
ZP_API int64_t zp_cache_length(const zp_cache* cache, int32_t sequence);
/* Drop a sequence's tokens from position `length` on. */
ZP_API zp_status zp_cache_truncate(zp_cache* cache, int32_t sequence, int64_t length);
/* Let the empty sequence `target` begin with the first `length` tokens of `source`. The pages that these tokens fill
 * are shared. A page that they fill in part is copied: returns ZP_INVALID, and changes nothing, if no page is free for
 * the copy. A sequence that is truncated to a position within a shared page copies the page before it writes to it. */
ZP_API zp_status zp_cache_share(zp_cache* cache, int32_t source, int32_t target, int64_t length);

/* Run one forward step over `count` tokens; token, sequence, position and wanted are [count]. The positions of a
 * sequence's tokens continue its cached length without a gap. The logits of the tokens with wanted[i] != 0 (null: of
 * all) are written in order, [vocab] each, to `logits`. Several threads may call zp_forward; the steps of one decoder
 * are taken one after the other. On an error, no sequence changes. A NaN or infinity in one token affects no token
 * before it. */
ZP_API zp_status zp_forward(zp_decoder* decoder, zp_cache* cache, int64_t count, const int32_t* token,
                            const int32_t* sequence, const int32_t* position, const uint8_t* wanted,
                            float* logits, int32_t threads);

/* -- choosing tokens ------------------------------------------------------------------------------
 *
 * Rows of `count` logits, fewer than 2^23, `stride` values apart. A logit of -infinity marks a token that is never
 * chosen. A row's result depends neither on `threads` nor on the instruction set nor on the other rows. */
typedef struct {
  double top_p;        /* keep the fewest most likely tokens whose probabilities sum to top_p; above 0, 1: all */
  double min_p;        /* keep tokens of at least min_p times the largest probability; 0: all */
  int64_t top_k;       /* keep the k most likely tokens, and those as likely as the last; 0: all */
  uint64_t seed;       /* the random number of a draw is a function of `seed` and `number` */
  uint64_t number;     /* how many tokens of the text were drawn before */
  const int32_t* mask; /* null, or [ceil(count / 32)]: bit i % 32 of mask[i / 32] is set if token i may be chosen */
  float temperature;   /* 0: choose the most likely token that `mask` allows (ties: lowest id); the other options
                          have no effect */
} zp_sampling;

/* Choose a token of each row: mask, temperature, top_k, top_p, min_p, random draw, in this order. tokens[i] is -1 if a
 * logit of row i is NaN or +infinity, or if the logits of all tokens that the mask allows are -infinity. */
ZP_API zp_status zp_sample(const float* logits, int64_t stride, int64_t rows, int64_t count,
                           const zp_sampling* samplings, int32_t* tokens, int32_t threads);

/* Compute log probabilities, in nats: of the token tokens[i] of each row i, and of its `top` most likely tokens, most
 * likely first (ties: lowest id first). `tokens` and `scores` are [rows], `top_ids` and `top_scores` [rows, top]. All
 * scores of a row are NaN if its largest logit is not finite, or any logit is NaN. */
ZP_API zp_status zp_score(const float* logits, int64_t stride, int64_t rows, int64_t count, const int32_t* tokens,
                          int32_t top, float* scores, int32_t* top_ids, float* top_scores, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
