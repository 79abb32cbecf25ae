/* Generate tokens with the C library alone: no Python, no tokenizer.
 *
 *   zeropoint pack ARTIFACT -o model.zeropoint
 *   cmake -S . -B build/static -DCMAKE_BUILD_TYPE=Release && cmake --build build/static --target zeropoint_static
 *   cc -O2 -I native/include examples/c/generate.c build/static/libzeropoint.a -lstdc++ -lm -lpthread -o generate
 *   ./generate model.zeropoint 64 504 3575 282 4649 314      (64 tokens after these; THREADS=4 for four threads)
 *
 * It prints the tokens, then a digest of all logits: equal on every processor and instruction set level. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "zeropoint.h"

/* A model file: a head, records, then the data that records point to; docs/embed.md describes it. */
struct head {
  char magic[16];
  int32_t version, records;
  uint64_t bytes; /* of the file */
  zp_decoder_config config;
  int32_t unused[3];
};

enum { LAYER, ROPE, LINEAR, NORM };

struct record {
  int32_t kind, layer, slot, count; /* LAYER: slot is the rotation table, count the window */
  float scale;
  int32_t unused;
  uint64_t at, bytes, bias; /* offsets from the start of the file; bias 0: none */
  zp_format format;
};

static void require(int good, const char* what) {
  if (good) return;
  fprintf(stderr, "%s: %s\n", what, zp_last_error());
  exit(1);
}

/* Return the data at an offset; end the program if `bytes` of it do not lie in the file. */
static const void* part(const struct head* file, uint64_t at, uint64_t bytes) {
  require(at <= file->bytes && bytes <= file->bytes - at, "the model file is damaged");
  return at == 0 ? NULL : (const char*)file + at;
}

static const struct head* map_file(const char* path) {
  struct stat status;
  const int handle = open(path, O_RDONLY);
  require(handle >= 0 && fstat(handle, &status) == 0 && (size_t)status.st_size >= sizeof(struct head), path);
  const struct head* file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, handle, 0);
  require(file != MAP_FAILED && memcmp(file->magic, "zeropoint model", 16) == 0 &&
              file->version == ZP_ABI_VERSION && file->bytes == (uint64_t)status.st_size && file->records >= 0,
          "not a model file of this version: make it again with zeropoint pack");
  part(file, sizeof *file, (uint64_t)file->records * sizeof(struct record));
  close(handle);
  return file;
}

static zp_decoder* load(const struct head* file) {
  const struct record* records = (const struct record*)(file + 1);
  zp_decoder* decoder = NULL;
  require(zp_decoder_create(&file->config, &decoder) == ZP_OK, "the model");
  for (const struct record* r = records; r < records + file->records; ++r) {
    zp_status status = ZP_INVALID;
    const uint64_t floats = (uint64_t)(r->kind == LINEAR ? r->format.rows : r->count) * sizeof(float);
    const float* bias = part(file, r->bias, floats);
    if (r->kind == LAYER) status = zp_decoder_layer(decoder, r->layer, r->count, r->slot);
    if (r->kind == ROPE) status = zp_decoder_rope(decoder, r->slot, part(file, r->at, floats), r->count, r->scale);
    if (r->kind == NORM)
      status = zp_decoder_norm(decoder, r->layer, r->slot, part(file, r->at, floats), bias, r->count);
    if (r->kind == LINEAR) {
      zp_weight* weight = NULL; /* lives as long as the decoder, here until the program ends */
      require(zp_view(&r->format, part(file, r->at, r->bytes), r->bytes, &weight) == ZP_OK, "a weight");
      status = zp_decoder_linear(decoder, r->layer, r->slot, weight, bias);
    }
    require(status == ZP_OK, "a part of the model");
  }
  require(zp_decoder_finish(decoder) == ZP_OK, "the model");
  return decoder;
}

int main(int count, char** arguments) {
  if (count < 4) return fprintf(stderr, "usage: %s MODEL TOKENS ID [ID ...]\n", arguments[0]), 2;
  const struct head* file = map_file(arguments[1]);
  zp_decoder* decoder = load(file);
  const int length = count - 3, wanted = atoi(arguments[2]), total = length + wanted;
  const int threads = getenv("THREADS") ? atoi(getenv("THREADS")) : 1;
  const int64_t vocab = file->config.vocab;
  require(wanted > 0 && total <= file->config.max_positions, "too few or too many tokens");
  int32_t* token = calloc(3 * (size_t)total, sizeof *token); /* and sequence, always 0, and position */
  int32_t *sequence = token + total, *position = sequence + total;
  uint8_t* is_last = calloc((size_t)total, 1); /* tokens whose logits are wanted */
  float* logits = malloc((size_t)vocab * sizeof *logits);
  zp_cache* cache = NULL;
  require(zp_cache_create(decoder, total, 1, ZP_CACHE_FLOAT16, &cache) == ZP_OK, "the cache");
  for (int i = 0; i < total; ++i) position[i] = i;
  for (int i = 0; i < length; ++i) token[i] = atoi(arguments[3 + i]);
  const zp_sampling greedy = {.top_p = 1}; /* temperature 0: the most likely token */
  uint64_t digest = 14695981039346656037u; /* FNV-1a of all logits' bits */
  for (int done = 0, end = length; end < total; done = end++) {
    is_last[end - 1] = 1;
    require(zp_forward(decoder, cache, end - done, token + done, sequence, position + done, is_last + done, logits,
                       threads) == ZP_OK &&
                zp_sample(logits, vocab, 1, vocab, &greedy, token + end, 1) == ZP_OK,
            "a step");
    for (const uint8_t *p = (const uint8_t*)logits, *stop = p + vocab * 4; p < stop; ++p)
      digest = (digest ^ *p) * 1099511628211u;
    printf("%d%c", token[end], end + 1 < total ? ' ' : '\n');
    fflush(stdout);
  }
  printf("digest %016llx\n", (unsigned long long)digest);
  zp_cache_free(cache);
  zp_decoder_free(decoder);
  return 0;
}
