/* What a CPU does between matrix products, and attention, for x86-64 with AVX-512. See avx512.py, which checks what it is given.
 *
 * torch passes over a tensor once for each operation, and starts every one of them from Python; here a row is read while it is in
 * the innermost cache. Threads are torch's own: this file is compiled for OpenMP, but not linked with a runtime of it, so that
 * the one that torch has loaded serves both.
 *
 * Numbers are float32 or bfloat16 ("half"); sums are float32.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#ifndef SOURCE
#error "hatch_build.py compiles this: SOURCE is the SHA-256 of the file"
#endif

int omp_get_max_threads(void);

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define WIDE_INLINE WIDE __attribute__((always_inline)) static inline
#define DOTS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define DOTS_INLINE DOTS __attribute__((always_inline)) static inline

enum { LANES = 16, ROWS_AT_ONCE = 8, KEYS_AT_ONCE = 32, FEW_TOKENS = 16, PIXELS_AT_ONCE = 64 };

typedef Py_ssize_t Size;

/* ---- Sixteen numbers at a time */

WIDE_INLINE __mmask16 lanes(Size left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

WIDE_INLINE __m512 load(const void *from, Size at, __mmask16 some, int half)
{
    if (!half)
        return _mm512_maskz_loadu_ps(some, (const float *)from + at);
    __m256i bits = _mm256_maskz_loadu_epi16(some, (const uint16_t *)from + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* bfloat16 is rounded to the nearest, to even between two, as torch rounds; what is no number stays none. */
WIDE_INLINE void store(void *to, Size at, __mmask16 some, int half, __m512 values)
{
    if (!half) {
        _mm512_mask_storeu_ps((float *)to + at, some, values);
        return;
    }
    __m512i bits = _mm512_castps_si512(values);
    __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 none = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, none, _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16((uint16_t *)to + at, some, _mm512_cvtepi32_epi16(rounded));
}

/* Two to the power of x, within two units of the last place; of less than -126 little or nothing is left, and of minus infinity
 * nothing. The polynomial is the series of e to the power of f ln 2 around zero, for f from -1/2 to 1/2. */
WIDE_INLINE __m512 exp2_of(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x); /* in this order: of no number it is the second that is given back */
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_mul_ps(_mm512_sub_ps(x, whole), _mm512_set1_ps(0.69314718056f));
    __m512 sum = _mm512_set1_ps(1.0f / 5040);
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f / 720));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f / 120));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f / 24));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f / 6));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f));
    sum = _mm512_fmadd_ps(sum, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(sum, whole);
}

WIDE_INLINE __m512 silu_of(__m512 x)
{
    __m512 power = exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504089f)));
    return _mm512_div_ps(x, _mm512_add_ps(power, _mm512_set1_ps(1.0f)));
}

WIDE_INLINE float inverse_rms(const void *x, Size begin, Size channels, float eps, int half)
{
    __m512 squares = _mm512_setzero_ps();
    for (Size c = 0; c < channels; c += LANES) {
        __m512 v = load(x, begin + c, lanes(channels - c), half);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    return 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)channels + eps);
}

/* ---- Norms of rows */

typedef struct {
    const void *x, *update, *gate, *gain;
    const int64_t *row_of; /* a row of gate and gain for each token, or none: the first */
    void *total, *normed;
    Size channels, gate_stride, gain_stride;
    float eps;
} Rows;

/* normed = norm(x + norm(update) * gate) * gain, with what there is of it. */
WIDE_INLINE void rows_span(const Rows *rows, Size first, Size last, int half)
{
    Size channels = rows->channels;
    for (Size token = first; token < last; token++) {
        Size row = rows->row_of ? (Size)rows->row_of[token] : 0, at = token * channels;
        const void *x = rows->x;
        if (rows->update) {
            float factor = rows->gate ? inverse_rms(rows->update, at, channels, rows->eps, half) : 1.0f;
            for (Size c = 0; c < channels; c += LANES) {
                __mmask16 some = lanes(channels - c);
                __m512 v = _mm512_mul_ps(load(rows->update, at + c, some, half), _mm512_set1_ps(factor));
                if (rows->gate)
                    v = _mm512_mul_ps(v, load(rows->gate, row * rows->gate_stride + c, some, half));
                store(rows->total, at + c, some, half, _mm512_add_ps(load(x, at + c, some, half), v));
            }
            x = rows->total;
        }
        if (rows->gain) {
            __m512 factor = _mm512_set1_ps(inverse_rms(x, at, channels, rows->eps, half));
            for (Size c = 0; c < channels; c += LANES) {
                __mmask16 some = lanes(channels - c);
                __m512 v = _mm512_mul_ps(load(x, at + c, some, half), factor);
                v = _mm512_mul_ps(v, load(rows->gain, row * rows->gain_stride + c, some, half));
                store(rows->normed, at + c, some, half, v);
            }
        }
    }
}

WIDE static void rows_float(const Rows *rows, Size first, Size last) { rows_span(rows, first, last, 0); }
WIDE static void rows_half(const Rows *rows, Size first, Size last) { rows_span(rows, first, last, 1); }

static void rows_all(const Rows *rows, Size tokens, int half)
{
#pragma omp parallel for schedule(static) if (tokens > FEW_TOKENS)
    for (Size first = 0; first < tokens; first += FEW_TOKENS) {
        Size last = first + FEW_TOKENS < tokens ? first + FEW_TOKENS : tokens;
        (half ? rows_half : rows_float)(rows, first, last);
    }
}

/* ---- silu(gate) * up, of gate and up side by side */

WIDE_INLINE void swiglu_span(const void *gate_up, void *out, Size hidden, Size first, Size last, int half)
{
    for (Size token = first; token < last; token++)
        for (Size c = 0; c < hidden; c += LANES) {
            __mmask16 some = lanes(hidden - c);
            __m512 gate = load(gate_up, 2 * token * hidden + c, some, half);
            __m512 up = load(gate_up, (2 * token + 1) * hidden + c, some, half);
            store(out, token * hidden + c, some, half, _mm512_mul_ps(silu_of(gate), up));
        }
}

WIDE static void swiglu_float(const void *x, void *out, Size h, Size a, Size b) { swiglu_span(x, out, h, a, b, 0); }
WIDE static void swiglu_half(const void *x, void *out, Size h, Size a, Size b) { swiglu_span(x, out, h, a, b, 1); }

static void swiglu_all(const void *gate_up, void *out, Size tokens, Size hidden, int half)
{
#pragma omp parallel for schedule(static) if (tokens > FEW_TOKENS)
    for (Size first = 0; first < tokens; first += FEW_TOKENS) {
        Size last = first + FEW_TOKENS < tokens ? first + FEW_TOKENS : tokens;
        (half ? swiglu_half : swiglu_float)(gate_up, out, hidden, first, last);
    }
}

/* ---- Norm and rotation of heads, in place */

typedef struct {
    void *qkv;
    const void *q_gain, *k_gain;
    const float *rotation; /* of each token and pair of neighbours: cosine, sine */
    Size stride, queries, turned, width;
    float eps;
} Heads;

WIDE_INLINE void heads_span(const Heads *heads, Size first, Size last, int half)
{
    Size width = heads->width;
    for (Size token = first; token < last; token++) {
        const float *rotation = heads->rotation + token * width;
        for (Size head = 0; head < heads->turned; head++) {
            Size at = token * heads->stride + head * width;
            const void *gain = head < heads->queries ? heads->q_gain : heads->k_gain;
            __m512 factor = _mm512_set1_ps(gain ? inverse_rms(heads->qkv, at, width, heads->eps, half) : 1.0f);
            for (Size c = 0; c < width; c += LANES) {
                __mmask16 some = lanes(width - c);
                __m512 v = _mm512_mul_ps(load(heads->qkv, at + c, some, half), factor);
                if (gain)
                    v = _mm512_mul_ps(v, load(gain, c, some, half));
                __m512 turn = _mm512_maskz_loadu_ps(some, rotation + c);
                __m512 crossed = _mm512_mul_ps(_mm512_permute_ps(v, 0xb1), _mm512_movehdup_ps(turn));
                store(heads->qkv, at + c, some, half, _mm512_fmaddsub_ps(v, _mm512_moveldup_ps(turn), crossed));
            }
        }
    }
}

WIDE static void heads_float(const Heads *heads, Size first, Size last) { heads_span(heads, first, last, 0); }
WIDE static void heads_half(const Heads *heads, Size first, Size last) { heads_span(heads, first, last, 1); }

static void heads_all(const Heads *heads, Size tokens, int half)
{
#pragma omp parallel for schedule(static) if (tokens > FEW_TOKENS)
    for (Size first = 0; first < tokens; first += FEW_TOKENS) {
        Size last = first + FEW_TOKENS < tokens ? first + FEW_TOKENS : tokens;
        (half ? heads_half : heads_float)(heads, first, last);
    }
}

/* ---- Attention
 *
 * A piece of work is some queries of one head. It packs the head's keys so that 16 of them lie side by side for each channel (in
 * bfloat16 each pair of channels), takes all scores of eight queries, their softmax, and the mean of values by it.
 */

typedef struct {
    const void *q, *k, *v;
    void *out;
    Size q_token, q_head, k_token, k_head, v_token, v_head, out_token; /* strides */
    Size keys, heads, width;
    float scale; /* of scores, for powers of two */
} Attention;

typedef struct {
    float *keys, *scores;
    uint32_t *values;
    uint16_t *shares;
} Scratch;

static Size rounded_up(Size count, Size to) { return (count + to - 1) / to * to; }

/* Keys as [width, keys], or of pairs of channels as [width / 2, keys]; what fills up the last ones is zero. */
static void pack_keys(const Attention *a, Size run, Size head, Size padded, Scratch *s, int half)
{
    const char *k = (const char *)a->k + (run * a->keys * a->k_token + head * a->k_head) * (half ? 2 : 4);
    Size wide = half ? a->width / 2 : a->width;
    uint32_t *to = (uint32_t *)s->keys;
    for (Size key = 0; key < padded; key++) {
        const uint32_t *from = (const uint32_t *)(k + key * a->k_token * (half ? 2 : 4));
        for (Size c = 0; c < wide; c++)
            to[c * padded + key] = key < a->keys ? from[c] : 0;
    }
}

/* Values in bfloat16, each beside that of the next key. */
static void pack_values(const Attention *a, Size run, Size head, Size padded, Scratch *s)
{
    const uint16_t *v = (const uint16_t *)a->v + run * a->keys * a->v_token + head * a->v_head;
    for (Size key = 0; key < padded; key += 2)
        for (Size c = 0; c < a->width; c++) {
            uint32_t first = key < a->keys ? v[key * a->v_token + c] : 0;
            uint32_t second = key + 1 < a->keys ? v[(key + 1) * a->v_token + c] : 0;
            s->values[key / 2 * a->width + c] = first | second << 16;
        }
}

DOTS_INLINE __m512 times_pairs(__m512 sum, __m512i a, __m512i b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/* Softmax of a row of scores, without the division: the shares are written to where sums of values read them. */
WIDE_INLINE float shares_of(const Attention *a, float *scores, uint16_t *shares, Size padded, int half)
{
    __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (Size key = 0; key < a->keys; key += LANES) {
        __mmask16 some = lanes(a->keys - key);
        most = _mm512_mask_max_ps(most, some, most, _mm512_load_ps(scores + key));
    }
    __m512 scale = _mm512_set1_ps(a->scale);
    __m512 top = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), scale);
    for (Size key = 0; key < padded; key += LANES) {
        __mmask16 some = key < a->keys ? lanes(a->keys - key) : 0;
        __m512 share = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + key), scale, top));
        share = _mm512_maskz_mov_ps(some, share);
        sum = _mm512_add_ps(sum, share);
        store(half ? (void *)shares : (void *)scores, key, 0xffff, half, share);
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

#define SCORES(NAME, SPACE, HALF, STEP, READ, MULTIPLY)                                                                          \
    SPACE static void NAME(const Attention *a, const char *const *q, Size padded, const Scratch *s)                              \
    {                                                                                                                            \
        Size wide = a->width / STEP;                                                                                             \
        const float *keys = s->keys;                                                                                             \
        for (Size key = 0; key < padded; key += KEYS_AT_ONCE) {                                                                  \
            __m512 sums[ROWS_AT_ONCE][2];                                                                                        \
            for (int r = 0; r < ROWS_AT_ONCE; r++)                                                                               \
                sums[r][0] = sums[r][1] = _mm512_setzero_ps();                                                                   \
            for (Size c = 0; c < wide; c++) {                                                                                    \
                const float *at = keys + c * padded + key;                                                                       \
                __m512 left = _mm512_load_ps(at), right = _mm512_load_ps(at + LANES);                                            \
                _Pragma("GCC unroll 8") for (int r = 0; r < ROWS_AT_ONCE; r++)                                                   \
                {                                                                                                                \
                    READ query = SPREAD_##HALF(q[r], c);                                                                         \
                    sums[r][0] = MULTIPLY(sums[r][0], query, left);                                                              \
                    sums[r][1] = MULTIPLY(sums[r][1], query, right);                                                             \
                }                                                                                                                \
            }                                                                                                                    \
            for (int r = 0; r < ROWS_AT_ONCE; r++) {                                                                             \
                _mm512_store_ps(s->scores + r * padded + key, sums[r][0]);                                                       \
                _mm512_store_ps(s->scores + r * padded + key + LANES, sums[r][1]);                                               \
            }                                                                                                                    \
        }                                                                                                                        \
    }

#define SPREAD_0(from, c) _mm512_set1_ps(((const float *)(from))[c])
#define SPREAD_1(from, c) _mm512_set1_epi32(((const int32_t *)(from))[c])
#define MULTIPLY_FLOAT(sum, query, key) _mm512_fmadd_ps(query, key, sum)
#define MULTIPLY_HALF(sum, query, key) times_pairs(sum, query, _mm512_castps_si512(key))

SCORES(scores_float, WIDE, 0, 1, __m512, MULTIPLY_FLOAT)
SCORES(scores_half, DOTS, 1, 2, __m512i, MULTIPLY_HALF)

/* Sums of values of eight queries, of some of the channels: 16, 32 or 48. */
WIDE_INLINE void sums_float(
    const Attention *a, const float *v, const Scratch *s, Size padded, const float *factors, char *const *out, Size c, int vectors)
{
    __m512 sums[ROWS_AT_ONCE][3];
    for (int r = 0; r < ROWS_AT_ONCE; r++)
        for (int i = 0; i < vectors; i++)
            sums[r][i] = _mm512_setzero_ps();
    for (Size key = 0; key < a->keys; key++) {
        __m512 values[3];
        for (int i = 0; i < vectors; i++)
            values[i] = _mm512_loadu_ps(v + key * a->v_token + c + i * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            __m512 share = _mm512_set1_ps(s->scores[r * padded + key]);
            for (int i = 0; i < vectors; i++)
                sums[r][i] = _mm512_fmadd_ps(share, values[i], sums[r][i]);
        }
    }
    for (int r = 0; r < ROWS_AT_ONCE; r++)
        for (int i = 0; i < vectors; i++)
            store(out[r], c + i * LANES, 0xffff, 0, _mm512_mul_ps(sums[r][i], _mm512_set1_ps(factors[r])));
}

DOTS_INLINE void sums_half(
    const Attention *a, const Scratch *s, Size padded, const float *factors, char *const *out, Size c, int vectors)
{
    __m512 sums[ROWS_AT_ONCE][3];
    for (int r = 0; r < ROWS_AT_ONCE; r++)
        for (int i = 0; i < vectors; i++)
            sums[r][i] = _mm512_setzero_ps();
    for (Size pair = 0; pair < rounded_up(a->keys, 2) / 2; pair++) {
        __m512i values[3];
        for (int i = 0; i < vectors; i++)
            values[i] = _mm512_loadu_si512(s->values + pair * a->width + c + i * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            __m512i share = _mm512_set1_epi32(((const int32_t *)(s->shares + r * padded))[pair]);
            for (int i = 0; i < vectors; i++)
                sums[r][i] = times_pairs(sums[r][i], share, values[i]);
        }
    }
    for (int r = 0; r < ROWS_AT_ONCE; r++)
        for (int i = 0; i < vectors; i++)
            store(out[r], c + i * LANES, 0xffff, 1, _mm512_mul_ps(sums[r][i], _mm512_set1_ps(factors[r])));
}

#define PIECE(NAME, SPACE, HALF, SIZE, SCORES_OF, PACK, SUMS_OF)                                                                 \
    SPACE static void NAME(const Attention *a, Size run, Size head, Size first, Size last, Scratch *s)                           \
    {                                                                                                                            \
        Size padded = rounded_up(a->keys, KEYS_AT_ONCE);                                                                         \
        const char *q = (const char *)a->q + (run * a->keys * a->q_token + head * a->q_head) * SIZE;                             \
        char *out = (char *)a->out + (run * a->keys * a->out_token + head * a->width) * SIZE;                                    \
        pack_keys(a, run, head, padded, s, HALF);                                                                                \
        PACK;                                                                                                                    \
        for (Size query = first; query < last; query += ROWS_AT_ONCE) {                                                          \
            const char *from[ROWS_AT_ONCE];                                                                                      \
            char *to[ROWS_AT_ONCE];                                                                                              \
            float factors[ROWS_AT_ONCE];                                                                                         \
            for (int r = 0; r < ROWS_AT_ONCE; r++) { /* where there are fewer, the last is taken again */                        \
                Size each = query + r < last ? query + r : last - 1;                                                             \
                from[r] = q + each * a->q_token * SIZE;                                                                          \
                to[r] = out + each * a->out_token * SIZE;                                                                        \
            }                                                                                                                    \
            SCORES_OF(a, from, padded, s);                                                                                       \
            for (int r = 0; r < ROWS_AT_ONCE; r++)                                                                               \
                factors[r] = shares_of(a, s->scores + r * padded, s->shares + r * padded, padded, HALF);                         \
            Size c = 0;                                                                                                          \
            for (; c + 3 * LANES <= a->width; c += 3 * LANES)                                                                    \
                SUMS_OF(c, 3);                                                                                                   \
            if (c + 2 * LANES <= a->width)                                                                                       \
                SUMS_OF(c, 2);                                                                                                   \
            else if (c + LANES <= a->width)                                                                                      \
                SUMS_OF(c, 1);                                                                                                   \
        }                                                                                                                        \
    }

#define SUMS_FLOAT(c, vectors)                                                                                                   \
    sums_float(a, (const float *)a->v + run * a->keys * a->v_token + head * a->v_head, s, padded, factors, to, c, vectors)
#define SUMS_HALF(c, vectors) sums_half(a, s, padded, factors, to, c, vectors)

PIECE(piece_float, WIDE, 0, 4, scores_float, (void)0, SUMS_FLOAT)
PIECE(piece_half, DOTS, 1, 2, scores_half, pack_values(a, run, head, padded, s), SUMS_HALF)

/* False where there is no memory for it. */
static int attention_all(const Attention *a, Size runs, int half)
{
    Size padded = rounded_up(a->keys, KEYS_AT_ONCE), threads = omp_get_max_threads();
    /* Enough pieces that no thread waits long for another, and each large beside the packing of its keys. */
    Size splits = (4 * threads + runs * a->heads - 1) / (runs * a->heads);
    Size most = a->keys / (8 * ROWS_AT_ONCE);
    splits = splits > most ? most : splits;
    splits = splits < 1 ? 1 : splits;
    Size queries = rounded_up((a->keys + splits - 1) / splits, ROWS_AT_ONCE);
    splits = (a->keys + queries - 1) / queries;
    int enough = 1, wanted = (int)(runs * a->heads * splits < threads ? runs * a->heads * splits : threads);
#pragma omp parallel num_threads(wanted)
    {
        Scratch s;
        s.keys = aligned_alloc(64, (size_t)rounded_up(padded * a->width * (half ? 2 : 4), 64));
        s.scores = aligned_alloc(64, (size_t)(ROWS_AT_ONCE * padded * 4));
        s.values = half ? aligned_alloc(64, (size_t)rounded_up(padded * a->width * 2, 64)) : NULL;
        s.shares = half ? aligned_alloc(64, (size_t)(ROWS_AT_ONCE * padded * 2)) : NULL;
        int had = s.keys && s.scores && (!half || (s.values && s.shares));
        if (!had) {
#pragma omp atomic write
            enough = 0;
        }
#pragma omp for schedule(dynamic)
        for (Size piece = 0; piece < runs * a->heads * splits; piece++) {
            Size first = piece % splits * queries, last = first + queries < a->keys ? first + queries : a->keys;
            if (had)
                (half ? piece_half : piece_float)(a, piece / splits / a->heads, piece / splits % a->heads, first, last, &s);
        }
        free(s.keys);
        free(s.scores);
        free(s.values);
        free(s.shares);
    }
    return enough;
}

/* ---- Group norm and silu of pictures in channels-last order */

typedef struct {
    void *x;
    const void *residual, *weight, *bias;
    void *out;
    Size pixels, channels, groups;
    float eps;
    int silu;
} Norm;

/* x += residual, and for each channel over some pixels: the first, the sum of what the others differ from it, and the sum of
 * squares of that. Sums of the numbers themselves would lose a variance that is small beside the mean. */
WIDE_INLINE void moments_span(const Norm *n, Size picture, Size first, Size last, float *sums, int half)
{
    Size channels = n->channels, base = picture * n->pixels * channels;
    for (Size c = 0; c < channels; c += LANES) {
        __mmask16 some = lanes(channels - c);
        __m512 sum = _mm512_setzero_ps(), square = _mm512_setzero_ps(), pivot = _mm512_setzero_ps();
        for (Size pixel = first; pixel < last; pixel++) {
            Size at = base + pixel * channels + c;
            __m512 v = load(n->x, at, some, half);
            if (n->residual) {
                store(n->x, at, some, half, _mm512_add_ps(v, load(n->residual, at, some, half)));
                v = load(n->x, at, some, half);
            }
            if (pixel == first)
                pivot = v;
            v = _mm512_sub_ps(v, pivot);
            sum = _mm512_add_ps(sum, v);
            square = _mm512_fmadd_ps(v, v, square);
        }
        _mm512_mask_storeu_ps(sums + c, some, pivot);
        _mm512_mask_storeu_ps(sums + channels + c, some, sum);
        _mm512_mask_storeu_ps(sums + 2 * channels + c, some, square);
    }
}

/* factors: what each channel is multiplied with, then what is added. */
WIDE_INLINE void normed_span(const Norm *n, Size picture, Size first, Size last, const float *factors, int half)
{
    Size channels = n->channels, base = picture * n->pixels * channels;
    for (Size pixel = first; pixel < last; pixel++)
        for (Size c = 0; c < channels; c += LANES) {
            __mmask16 some = lanes(channels - c);
            __m512 v = load(n->x, base + pixel * channels + c, some, half);
            v = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(some, factors + c), _mm512_maskz_loadu_ps(some, factors + channels + c));
            store(n->out, base + pixel * channels + c, some, half, n->silu ? silu_of(v) : v);
        }
}

WIDE static void moments_float(const Norm *n, Size p, Size a, Size b, float *s) { moments_span(n, p, a, b, s, 0); }
WIDE static void moments_half(const Norm *n, Size p, Size a, Size b, float *s) { moments_span(n, p, a, b, s, 1); }
WIDE static void normed_float(const Norm *n, Size p, Size a, Size b, const float *f) { normed_span(n, p, a, b, f, 0); }
WIDE static void normed_half(const Norm *n, Size p, Size a, Size b, const float *f) { normed_span(n, p, a, b, f, 1); }

static float number(const void *from, Size at, int half)
{
    if (!half)
        return ((const float *)from)[at];
    union {
        uint32_t bits;
        float value;
    } wide = {(uint32_t)((const uint16_t *)from)[at] << 16};
    return wide.value;
}

static void factors_of(const Norm *n, const float *sums, Size pieces, float *factors, int half)
{
    Size width = n->channels / n->groups;
    for (Size group = 0; group < n->groups; group++) {
        double sum = 0, square = 0, count = (double)width * (double)n->pixels;
        for (Size piece = 0; piece < pieces; piece++) {
            Size left = n->pixels - piece * PIXELS_AT_ONCE;
            double pixels = (double)(left < PIXELS_AT_ONCE ? left : PIXELS_AT_ONCE);
            for (Size c = group * width; c < (group + 1) * width; c++) {
                const float *at = sums + piece * 3 * n->channels + c;
                double pivot = at[0], difference = at[n->channels];
                sum += difference + pixels * pivot;
                square += at[2 * n->channels] + pivot * (2 * difference + pixels * pivot);
            }
        }
        double mean = sum / count, variance = square / count - mean * mean;
        double factor = 1 / sqrt((variance < 0 ? 0 : variance) + n->eps);
        for (Size c = group * width; c < (group + 1) * width; c++) {
            factors[c] = (float)(factor * number(n->weight, c, half));
            factors[n->channels + c] = (float)(number(n->bias, c, half) - mean * factor * number(n->weight, c, half));
        }
    }
}

/* False where there is no memory for it. */
static int norm_all(const Norm *n, Size batch, int half)
{
    Size pieces = (n->pixels + PIXELS_AT_ONCE - 1) / PIXELS_AT_ONCE;
    float *sums = malloc((size_t)(batch * (3 * pieces + 2) * n->channels) * sizeof(float));
    if (!sums)
        return 0;
    float *factors = sums + batch * pieces * 3 * n->channels;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (Size piece = 0; piece < batch * pieces; piece++) {
            Size first = piece % pieces * PIXELS_AT_ONCE, last = first + PIXELS_AT_ONCE;
            last = last < n->pixels ? last : n->pixels;
            (half ? moments_half : moments_float)(n, piece / pieces, first, last, sums + piece * 3 * n->channels);
        }
#pragma omp for schedule(static)
        for (Size picture = 0; picture < batch; picture++)
            factors_of(n, sums + picture * pieces * 3 * n->channels, pieces, factors + picture * 2 * n->channels, half);
#pragma omp for schedule(static)
        for (Size piece = 0; piece < batch * pieces; piece++) {
            Size first = piece % pieces * PIXELS_AT_ONCE, last = first + PIXELS_AT_ONCE;
            last = last < n->pixels ? last : n->pixels;
            (half ? normed_half : normed_float)(n, piece / pieces, first, last, factors + piece / pieces * 2 * n->channels);
        }
    }
    free(sums);
    return 1;
}

/* ---- For Python: addresses and sizes as integers, then eps or scale as a float where there is one */

static int taken(const char *name, PyObject *const *args, Size count, Size *numbers, Size wanted, float *last)
{
    Size all = wanted + (last != NULL);
    if (count != all) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, all, count);
        return 0;
    }
    for (Size i = 0; i < wanted; i++)
        numbers[i] = PyLong_AsSsize_t(args[i]);
    if (last)
        *last = (float)PyFloat_AsDouble(args[wanted]);
    return !PyErr_Occurred();
}

static PyObject *done(int enough) { return enough ? Py_NewRef(Py_None) : PyErr_NoMemory(); }

static PyObject *norm_rows(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Size n[12];
    Rows rows;
    if (!taken("norm_rows", args, count, n, 12, &rows.eps))
        return NULL;
    rows.x = (void *)n[0], rows.update = (void *)n[1], rows.gate = (void *)n[2], rows.gain = (void *)n[3];
    rows.row_of = (void *)n[4], rows.total = (void *)n[5], rows.normed = (void *)n[6];
    rows.channels = n[8], rows.gate_stride = n[9], rows.gain_stride = n[10];
    Py_BEGIN_ALLOW_THREADS
    rows_all(&rows, n[7], (int)n[11]);
    Py_END_ALLOW_THREADS
    return done(1);
}

static PyObject *swiglu(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Size n[5];
    if (!taken("swiglu", args, count, n, 5, NULL))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    swiglu_all((void *)n[0], (void *)n[1], n[2], n[3], (int)n[4]);
    Py_END_ALLOW_THREADS
    return done(1);
}

static PyObject *turn_heads(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Size n[10];
    Heads heads;
    if (!taken("turn_heads", args, count, n, 10, &heads.eps))
        return NULL;
    heads.qkv = (void *)n[0], heads.q_gain = (void *)n[1], heads.k_gain = (void *)n[2], heads.rotation = (void *)n[3];
    heads.stride = n[5], heads.queries = n[6], heads.turned = n[7], heads.width = n[8];
    Py_BEGIN_ALLOW_THREADS
    heads_all(&heads, n[4], (int)n[9]);
    Py_END_ALLOW_THREADS
    return done(1);
}

static PyObject *attend(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Size n[16];
    Attention a;
    if (!taken("attend", args, count, n, 16, &a.scale))
        return NULL;
    int enough;
    a.q = (void *)n[0], a.k = (void *)n[1], a.v = (void *)n[2], a.out = (void *)n[3];
    a.q_token = n[4], a.q_head = n[5], a.k_token = n[6], a.k_head = n[7], a.v_token = n[8], a.v_head = n[9];
    a.out_token = n[10], a.keys = n[12], a.heads = n[13], a.width = n[14];
    Py_BEGIN_ALLOW_THREADS
    enough = attention_all(&a, n[11], (int)n[15]);
    Py_END_ALLOW_THREADS
    return done(enough);
}

static PyObject *norm_pictures(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    Size n[11];
    Norm norm;
    if (!taken("norm_pictures", args, count, n, 11, &norm.eps))
        return NULL;
    int enough;
    norm.x = (void *)n[0], norm.residual = (void *)n[1], norm.weight = (void *)n[2], norm.bias = (void *)n[3];
    norm.out = (void *)n[4], norm.pixels = n[6], norm.channels = n[7], norm.groups = n[8], norm.silu = (int)n[9];
    Py_BEGIN_ALLOW_THREADS
    enough = norm_all(&norm, n[5], (int)n[10]);
    Py_END_ALLOW_THREADS
    return done(enough);
}

static PyObject *level(PyObject *self, PyObject *none)
{
    (void)self, (void)none;
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
    return PyLong_FromLong(!wide ? 0 : __builtin_cpu_supports("avx512bf16") ? 2 : 1);
}

static PyMethodDef METHODS[] = {
    {"level", level, METH_NOARGS, "0: none of these can run here; 1: all but attention in bfloat16; 2: all."},
    {"norm_rows", (PyCFunction)(void (*)(void))norm_rows, METH_FASTCALL, NULL},
    {"swiglu", (PyCFunction)(void (*)(void))swiglu, METH_FASTCALL, NULL},
    {"turn_heads", (PyCFunction)(void (*)(void))turn_heads, METH_FASTCALL, NULL},
    {"attend", (PyCFunction)(void (*)(void))attend, METH_FASTCALL, NULL},
    {"norm_pictures", (PyCFunction)(void (*)(void))norm_pictures, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_avx512", "See avx512.py.", 0, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__avx512(void)
{
    PyObject *module = PyModule_Create(&MODULE);
    if (module && PyModule_AddStringConstant(module, "SOURCE", SOURCE) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
