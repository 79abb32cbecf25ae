/* The C interface of Zeropoint's CPU kernels.
 *
 * Every function that can fail returns a zp_status; zp_last_error() then says what was wrong, in the
 * calling thread. No exception leaves the library. All functions may be called from several threads
 * at once; products are computed one after the other on a shared pool of threads, on fewer than were asked for
 * where the system refuses to start them. Arrays have at most 2^40 values.
 */
#ifndef ZEROPOINT_H
#define ZEROPOINT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ZP_API __attribute__((visibility("default")))

/* Raised when a function or struct of this file changes; the Python loader refuses another version. */
#define ZP_ABI_VERSION 2

typedef enum { ZP_OK = 0, ZP_INVALID = 1, ZP_UNSUPPORTED = 2, ZP_NO_MEMORY = 3 } zp_status;

/* Instruction set levels, worst first. */
typedef enum { ZP_SCALAR = 0, ZP_AVX2 = 1, ZP_AVX512 = 2, ZP_AMX = 3, ZP_ISA_COUNT = 4 } zp_isa;

enum { ZP_ACTIVATION_FLOAT = -1, ZP_ACTIVATION_TOKEN = 0 };

/* How a scale is stored. ZP_SCALE_NESTED: the scales of a row are whole multiples, 1 to 15 times either
 * sign (of 5 bits 1 to 7), of one float per row; symmetric groups of up to 5 bits only. They are kept as one byte
 * each. */
enum { ZP_SCALE_FLOAT32 = 0, ZP_SCALE_BFLOAT16 = 1, ZP_SCALE_NESTED = 2 };

/* What the weights are. */
enum { ZP_INTEGER = 0, ZP_FLOAT16 = 1, ZP_BFLOAT16 = 2, ZP_FLOAT32 = 3 };

/* The format of a weight [rows, columns] = [out, in] and of its input. The fields from `bits` to
 * `scale_type` belong to ZP_INTEGER weights; they are 0 for the others, whose input stays float. */
typedef struct {
  int64_t rows;
  int64_t columns;
  int32_t kind;            /* ZP_INTEGER or a float type */
  int32_t bits;            /* 2..8; up to 4 bits are stored as nibbles, 5 as nibbles and bits, more as bytes */
  int32_t group_size;      /* input channels that share a scale; 0: the whole row */
  int32_t per_tensor;      /* 1: one scale (and zero point) in all; group_size is 0 */
  int32_t asymmetric;      /* 1: zero points are given */
  int32_t activation;      /* integer input: channels of a token that share a scale, or ZP_ACTIVATION_TOKEN;
                              ZP_ACTIVATION_FLOAT: the input stays float */
  int32_t activation_bits; /* 8, or 16 (two int8 limbs; ZP_ACTIVATION_TOKEN only); 0 when it stays float */
  int32_t scale_type;      /* ZP_SCALE_... */
} zp_format;

typedef struct zp_weight zp_weight;

ZP_API int32_t zp_abi_version(void);
ZP_API const char* zp_last_error(void);

/* ZP_OK when zp_pack would accept the format. */
ZP_API zp_status zp_check(const zp_format* format);

/* Packs codes [rows, columns], scales and zero points [rows, groups] (or one value) in row-major
 * order. w = (code - zero_point) * scale. The result is independent of the instruction set. */
ZP_API zp_status zp_pack(const zp_format* format, const int8_t* codes, const float* scale,
                         const int8_t* zero_point, zp_weight** out);

/* Packs float weights (format.kind is not ZP_INTEGER): values [rows, columns] of that type. */
ZP_API zp_status zp_pack_float(const zp_format* format, const void* values, zp_weight** out);

/* The inverse of zp_pack, exact: codes [rows, columns], scales and zero points (null where there are none)
 * [rows, groups], one group a row where a scale serves the whole row or the tensor. */
ZP_API zp_status zp_unpack(const zp_weight* weight, int8_t* codes, float* scale, int8_t* zero_point);

ZP_API void zp_free(zp_weight* weight);
ZP_API size_t zp_weight_bytes(const zp_weight* weight);

/* The packed bytes, and a weight over such bytes (a mapped file, say; 64-byte aligned), which must outlive
 * it. */
ZP_API const void* zp_weight_memory(const zp_weight* weight);
ZP_API zp_status zp_view(const zp_format* format, const void* memory, size_t bytes, zp_weight** out);

/* y[m, n] = sum_k x[m, k] * w[n, k] + bias[n]; strides in elements, bias may be null.
 * The result does not depend on `threads`, nor on the number of rows in the call. */
ZP_API zp_status zp_linear(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride,
                           const float* bias, float* y, int64_t y_stride, int32_t threads);

/* zp_linear in two halves, for weights of integer input: its rows quantized into `input`, 64-byte aligned
 * memory of zp_input_bytes, and their product. An input serves every weight of the same columns and
 * activation format. */
ZP_API size_t zp_input_bytes(const zp_weight* weight, int64_t rows);
ZP_API zp_status zp_quantize(const zp_weight* weight, const float* x, int64_t rows, int64_t x_stride,
                             void* input, int32_t threads);
ZP_API zp_status zp_multiply(const zp_weight* weight, void* input, int64_t rows, const float* bias, float* y,
                             int64_t y_stride, int32_t threads);

/* out[i, :] = w[ids[i], :] as float. */
ZP_API zp_status zp_rows(const zp_weight* weight, const int64_t* ids, int64_t count, float* out,
                         int64_t out_stride);

/* Of two models' predictions of one token: p's divergence from q in nats, each one's loss at the token that
 * came, and whether both think the same token the most likely (the first of equals). */
typedef struct {
  double divergence, p_loss, q_loss;
  int32_t agrees;
} zp_divergence_row;

/* Rows of `count` finite or masked (-infinite) logits; p is the reference. A token that only one of the two
 * masks counts as one of probability e^-10000 there. */
ZP_API zp_status zp_divergence(const float* p, int64_t p_stride, const float* q, int64_t q_stride,
                               const int64_t* targets, int64_t rows, int64_t count, zp_divergence_row* out,
                               int32_t threads);

/* -- choosing codes -------------------------------------------------------------------------------
 *
 * A weight [rows, columns] in groups of `group_size` along its rows, of which the last may be short, and the
 * codes that there are. What is said of its groups is [rows, groups]. Importance [columns] is what an error in
 * each column counts. Results depend neither on `threads` nor on the instruction set. */
typedef struct {
  const float* weight;
  int64_t rows, columns, group_size;
  int32_t qmin, qmax;
} zp_groups;

/* For each group x its smallest and largest weight, or 0, and the best of the grids tried: those of a scale s and
 * zero point z that cover a part of the range, whose levels L = clamp(round(x / s) + z) - z have the least error
 * with the best scale for them, (x . L) / (L . L). That is `scale`, and z is `zero` (null: z is 0). `parts` [count]
 * are of the largest weight, which comes to lie at qmin; with zero points of both ends, each with each. */
ZP_API zp_status zp_grid_search(const zp_groups* groups, const float* importance, const float* parts,
                                int64_t count, float* low, float* high, float* scale, float* zero,
                                int32_t threads);

/* The weighted squared error of each group on each of `grids` grids, [grids, rows, groups] like their scales
 * and zero points (null: 0). */
ZP_API zp_status zp_grid_errors(const zp_groups* groups, const float* importance, int64_t grids,
                                const float* scale, const float* zero, float* error, int32_t threads);

/* Codes [rows, columns] of the groups' scales and zero points (null: 0), column order[j] rounded to the level
 * nearest to its weight plus sum_{i > j} ratio[j, i] * error of column order[i], from the last j to the first. */
ZP_API zp_status zp_round_columns(const zp_groups* groups, const float* scale, const float* zero,
                                  const float* ratio, const int64_t* order, int8_t* codes, int32_t threads);

/* Changes codes [rows, columns] of the groups' scales and zero points (null: 0), `sweeps` times one column after
 * the other, to the least E H E' of each row, E its weights less what its codes stand for: column j to the codes
 * nearest to code_j + (H E)_j / (H_jj scale). `hessian` [columns, columns] is symmetric, its diagonal above 0. */
ZP_API zp_status zp_descend_columns(const zp_groups* groups, const float* scale, const float* zero,
                                    const float* hessian, int64_t sweeps, int8_t* codes, int32_t threads);

/* Bit i set: this CPU (and operating system) can run level i. */
ZP_API uint32_t zp_isa_levels(void);
/* The level in use; negative when ZEROPOINT_ISA names one that does not exist or cannot run here. */
ZP_API int32_t zp_isa_active(void);
/* Chooses a level for the process; refused while another thread computes. */
ZP_API zp_status zp_isa_select(int32_t level);

/* Streams through `bytes` of memory `repeats` times; the best rate in bytes a second. */
ZP_API zp_status zp_read_bandwidth(size_t bytes, int32_t threads, int32_t repeats, double* rate);

/* -- the decoder: a whole forward step of a causal language model ---------------------------------
 *
 *   x = embedding[token] * embedding_scale (+ positions[position]) (then an embedding norm, when given)
 *   each layer:  a = attention(norm(x));  x += post_norm(a) * residual_scale
 *                m = mlp(norm(x));        x += post_norm(m) * residual_scale
 *     parallel:  x += attention(norm(x)) + mlp(mlp_norm(x)), from the same x; without ZP_MLP_NORM both
 *                read the one norm
 *   logits = softcap(head(norm(x)) * logit_scale)
 *
 * A norm whose vector is not given is left out. "1 + w" norms are given with the 1 added. */

typedef struct zp_decoder zp_decoder;
typedef struct zp_cache zp_cache;

enum { ZP_NORM_RMS = 0, ZP_NORM_LAYER = 1 };
/* Which channels of a head turn together: i and i + rotary_dim / 2, or 2 i and 2 i + 1. */
enum { ZP_ROPE_NONE = 0, ZP_ROPE_HALVES = 1, ZP_ROPE_PAIRS = 2 };
enum { ZP_SILU = 0, ZP_GELU = 1, ZP_GELU_TANH = 2, ZP_RELU = 3 };

enum { ZP_MAX_ROPE_TABLES = 2 };

typedef struct {
  int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
  int32_t max_positions; /* a token at or beyond it is refused */
  int32_t norm;          /* ZP_NORM_... */
  float norm_eps;
  int32_t rope;       /* ZP_ROPE_... */
  int32_t rotary_dim; /* of each head; the rest does not turn */
  int32_t activation; /* ZP_SILU ... */
  int32_t gated;      /* down(activation(gate(x)) * up(x)); otherwise down(activation(up(x))) */
  int32_t parallel;
  float embedding_scale; /* 1 for none, like the next two */
  float residual_scale;
  float logit_scale;
  float attention_scale;   /* of q . k */
  float attention_softcap; /* c * tanh(score / c); 0: none */
  float logit_softcap;
} zp_decoder_config;

/* Linear layers, by zp_decoder_linear. The last three belong to the model: layer is -1. */
typedef enum {
  ZP_Q,
  ZP_K,
  ZP_V,
  ZP_O,
  ZP_GATE,
  ZP_UP,
  ZP_DOWN,
  ZP_EMBEDDING,
  ZP_POSITIONS,
  ZP_HEAD, /* a tied head is the same weight given twice */
  ZP_LINEAR_COUNT
} zp_linear_slot;

/* Norm weights, by zp_decoder_norm. Those from ZP_EMBEDDING_NORM on belong to the model: layer is -1. */
typedef enum {
  ZP_ATTENTION_NORM,
  ZP_POST_ATTENTION_NORM,
  ZP_MLP_NORM,
  ZP_POST_MLP_NORM,
  ZP_Q_NORM,
  ZP_K_NORM, /* before the rotation; of head_dim values, or of all heads' */
  ZP_EMBEDDING_NORM,
  ZP_FINAL_NORM,
  ZP_NORM_COUNT
} zp_norm_slot;

/* Copies `config`. The decoder is complete once zp_decoder_finish has accepted it. */
ZP_API zp_status zp_decoder_create(const zp_decoder_config* config, zp_decoder** out);
ZP_API void zp_decoder_free(zp_decoder* decoder);
/* `window`: how many positions back a layer sees, itself included; 0: all. `table`: which rotation. */
ZP_API zp_status zp_decoder_layer(zp_decoder* decoder, int32_t layer, int32_t window, int32_t table);
/* Angles: position * inverse_frequency[i], i < rotary_dim / 2; cosine and sine are multiplied by `scale`. */
ZP_API zp_status zp_decoder_rope(zp_decoder* decoder, int32_t table, const float* inverse_frequency,
                                 int32_t count, float scale);
/* The weight must outlive the decoder; the bias [rows], or null, is copied. */
ZP_API zp_status zp_decoder_linear(zp_decoder* decoder, int32_t layer, int32_t slot, const zp_weight* weight,
                                   const float* bias);
/* Copies weight [count] and bias [count] (null: none). */
ZP_API zp_status zp_decoder_norm(zp_decoder* decoder, int32_t layer, int32_t slot, const float* weight,
                                 const float* bias, int32_t count);
/* Checks that every part is there and fits the others. */
ZP_API zp_status zp_decoder_finish(zp_decoder* decoder);

/* ZP_CACHE_FLOAT16 holds numbers up to 65504. The first key or value beyond makes the cache wide: it is kept in
 * float32, what fits half precision still rounded to it. Later caches of that type and decoder are wide from the
 * start. Results do not depend on when a cache became wide. */
enum { ZP_CACHE_FLOAT16 = 0, ZP_CACHE_INT8 = 1, ZP_CACHE_FLOAT32 = 2 };

/* Keys and values of up to `tokens` tokens, shared in pages by up to `sequences` sequences. */
ZP_API zp_status zp_cache_create(const zp_decoder* decoder, int64_t tokens, int32_t sequences, int32_t type,
                                 zp_cache** out);
ZP_API void zp_cache_free(zp_cache* cache);
/* Makes room for `tokens` tokens in all; what is cached stays. A cache never shrinks. On an error it is as before. */
ZP_API zp_status zp_cache_grow(zp_cache* cache, int64_t tokens);
ZP_API size_t zp_cache_bytes(const zp_cache* cache);
/* 1: a cache of ZP_CACHE_FLOAT16 that became wide. */
ZP_API int32_t zp_cache_is_wide(const zp_cache* cache);
ZP_API int64_t zp_cache_length(const zp_cache* cache, int32_t sequence); /* -1: no such sequence */
/* Forgets what lies at `length` and beyond. */
ZP_API zp_status zp_cache_truncate(zp_cache* cache, int32_t sequence, int64_t length);

/* One forward step over `count` tokens. Tokens of a sequence come in order and its positions go on from its
 * cached length. Writes the logits [vocab] of each token that `wanted` marks (null: of all), in order, to
 * rows of `logits`. Several threads may call it; steps of one decoder are taken one after the other. On an
 * error the cache is as before the call. A NaN or infinity of one token reaches no token before it. */
ZP_API zp_status zp_forward(zp_decoder* decoder, zp_cache* cache, int64_t count, const int32_t* token,
                            const int32_t* sequence, const int32_t* position, const uint8_t* wanted,
                            float* logits, int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
