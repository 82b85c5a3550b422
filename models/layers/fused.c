/* Group normalisation, silu and dropout in one go, and their gradients: see fused.py.

   Images are (batch, pixels, channels) of float, or of bfloat16 with -DBFLOAT16, and computed with in float. What is
   told of each channel is (batch, channels), weight and bias perhaps (channels). Sums are over blocks of pixels first, then over the blocks: the same
   whatever the number of threads. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 256
#define SOME 64
#define INLINE static inline __attribute__((always_inline))

#ifdef BFLOAT16
typedef uint16_t value;
INLINE float wide(value v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
INLINE value narrow(float f) { /* to the nearest, ties to even; not a number stays so */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return f != f ? 0x7fc0 : (value)rounded;
}
#else
typedef float value;
INLINE float wide(value v) { return v; }
INLINE value narrow(float f) { return f; }
#endif

typedef struct {
    const value *x;
    const uint8_t *mask; /* 0 where a value is dropped; or none */
    const float *weight, *bias, *added; /* added: or none */
    float *centre, *scale, *spread;
    int64_t batch, pixels, channels, groups, told; /* told: from an image's weight and bias to the next's, or 0 */
    float eps, kept;                               /* kept: 1 / (1 - p) */
    int silu;
} Norm;

/* What a block's loops need of one image. */
typedef struct {
    const value *x;
    const uint8_t *mask;
    const float *centre, *gain, *bias;
    int64_t channels;
    float kept;
} Image;

/* 1 / (1 + exp(-y)) to a unit or two in the last place; exp by 2^n times a polynomial (Cephes). */
INLINE float sigmoid(float y) {
    float t = y > 87.0f ? -87.0f : (y < -87.0f ? 87.0f : -y);
    float n = nearbyintf(t * 1.44269504f), r = t - n * 0.693359375f + n * 2.12194440e-4f;
    float e = 1.9875691500e-4f;
    e = e * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    e = e * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return 1.0f / (1.0f + e * power);
}

/* dropout(silu(v)) of a block's values; `silu` and `drops` are known where this is inlined. */
INLINE void put(Image m, value *restrict y, int64_t first, int64_t last, int silu, int drops) {
    for (int64_t i = first * m.channels; i < last * m.channels; i += m.channels)
        for (int64_t c = 0; c < m.channels; c++) {
            float v = (wide(m.x[i + c]) - m.centre[c]) * m.gain[c] + m.bias[c];
            v = silu ? v * sigmoid(v) : v;
            y[i + c] = narrow(drops ? v * (m.mask[i + c] * m.kept) : v);
        }
}

/* The gradient by v, and its sums, alone and times the normalised values before their gain. */
INLINE void back(
    Image m, const value *g, value *restrict by_v, float *restrict total, float *restrict product,
    int64_t first, int64_t last, int silu, int drops
) {
    for (int64_t i = first * m.channels; i < last * m.channels; i += m.channels)
        for (int64_t c = 0; c < m.channels; c++) {
            float z = wide(m.x[i + c]) - m.centre[c], v = z * m.gain[c] + m.bias[c];
            float d = drops ? wide(g[i + c]) * (m.mask[i + c] * m.kept) : wide(g[i + c]);
            float s = silu ? sigmoid(v) : 1.0f;
            d = silu ? d * (s + v * (s - s * s)) : d;
            by_v[i + c] = narrow(d);
            total[c] += d;
            product[c] += d * z;
        }
}

#define VARIANTS(function, silu, drops, ...)                        \
    do {                                                            \
        if (!(silu)) function(__VA_ARGS__, 0, 0);                   \
        else if (drops) function(__VA_ARGS__, 1, 1);                \
        else function(__VA_ARGS__, 1, 0);                           \
    } while (0)

static int64_t blocks(const Norm *m) { return (m->pixels + BLOCK - 1) / BLOCK; }

static int64_t end(const Norm *m, int64_t block) {
    int64_t last = (block + 1) * BLOCK;
    return last < m->pixels ? last : m->pixels;
}

static Image image_of(const Norm *m, int64_t image, const float *gain) {
    int64_t row = image * m->channels, start = row * m->pixels;
    return (Image){
        m->x + start, m->mask ? m->mask + start : NULL,
        m->centre + row, gain, m->bias + image * m->told, m->channels, m->kept};
}

/* The sum of all blocks' sums (blocks, 2, channels), into the first. */
static void join(double *sums, const Norm *m) {
    const int64_t size = 2 * m->channels;
    for (int64_t block = 1; block < blocks(m); block++)
        for (int64_t i = 0; i < size; i++) sums[i] += sums[block * size + i];
}

/* Each channel's sum gives way to its group's mean. */
static void share(double *sums, const Norm *m) {
    const int64_t each = m->channels / m->groups;
    for (int64_t c = 0; c < 2 * m->channels; c += each) {
        double sum = 0;
        for (int64_t i = c; i < c + each; i++) sum += sums[i];
        for (int64_t i = c; i < c + each; i++) sums[i] = sum / (double)(each * m->pixels);
    }
}

/* One image; its blocks by all threads, if it has them to itself. */
static void activate(const Norm *m, value *y, int64_t image, int alone) {
    const int64_t C = m->channels, each = C / m->groups, row = image * C, count = blocks(m);
    float *centre = m->centre + row, *scale = m->scale + row, *spread = m->spread + row, gain[C];
    double *sums = malloc(sizeof(double) * 2 * C * count);
    const Image own = image_of(m, image, gain);
    y += row * m->pixels;

    /* About the mean of a few of the group's pixels: few digits are lost where its mean is far from zero. */
    for (int64_t first = 0; first < C; first += each) {
        const int64_t some = m->pixels < SOME ? m->pixels : SOME;
        double sum = 0;
        for (int64_t i = 0; i < some; i++)
            for (int64_t c = first; c < first + each; c++) sum += wide(own.x[i * C + c]) + (m->added ? m->added[row + c] : 0.0f);
        for (int64_t c = first; c < first + each; c++)
            centre[c] = (float)(sum / (double)(some * each)) - (m->added ? m->added[row + c] : 0.0f);
    }
#pragma omp parallel for if (alone)
    for (int64_t block = 0; block < count; block++) {
        float total[C], square[C];
        for (int64_t c = 0; c < C; c++) total[c] = square[c] = 0.0f;
        for (int64_t i = block * BLOCK; i < end(m, block); i++)
            for (int64_t c = 0; c < C; c++) {
                float z = wide(own.x[i * C + c]) - centre[c];
                total[c] += z;
                square[c] += z * z;
            }
        for (int64_t c = 0; c < C; c++) sums[2 * C * block + c] = total[c], sums[2 * C * block + C + c] = square[c];
    }
    join(sums, m);
    for (int64_t c = 0; c < C; c++) spread[c] = (float)sums[c];
    share(sums, m);
    for (int64_t c = 0; c < C; c++) {
        double mean = sums[c], variance = sums[C + c] - mean * mean;
        centre[c] += (float)mean;
        scale[c] = (float)(1 / sqrt((variance < 0 ? 0 : variance) + m->eps));
        spread[c] = (float)(spread[c] - m->pixels * mean);
        gain[c] = m->weight[image * m->told + c] * scale[c];
    }
    free(sums);
#pragma omp parallel for if (alone)
    for (int64_t block = 0; block < count; block++)
        VARIANTS(put, m->silu, m->mask, own, y, block * BLOCK, end(m, block));
}

static void differentiate(
    const Norm *m, const value *g, value *by_x, float *by_weight, float *by_bias, float *by_added, int64_t image, int alone
) {
    const int64_t C = m->channels, row = image * C, count = blocks(m);
    const float *weight = m->weight + image * m->told, *scale = m->scale + row, *spread = m->spread + row;
    float gain[C], slope[C], offset[C];
    double *sums = malloc(sizeof(double) * 2 * C * count);
    const Image own = image_of(m, image, gain);
    g += row * m->pixels, by_x += row * m->pixels;

    for (int64_t c = 0; c < C; c++) gain[c] = weight[c] * scale[c];
#pragma omp parallel for if (alone)
    for (int64_t block = 0; block < count; block++) {
        float total[C], product[C];
        for (int64_t c = 0; c < C; c++) total[c] = product[c] = 0.0f;
        VARIANTS(back, m->silu, m->mask, own, g, by_x, total, product, block * BLOCK, end(m, block));
        for (int64_t c = 0; c < C; c++) sums[2 * C * block + c] = total[c], sums[2 * C * block + C + c] = product[c];
    }
    join(sums, m);
    for (int64_t c = 0; c < C; c++) {
        by_bias[row + c] = (float)sums[c];
        by_weight[row + c] = (float)(sums[C + c] * scale[c]);
        sums[c] *= weight[c];
        sums[C + c] *= gain[c];
    }
    share(sums, m); /* what the mean and the standard deviation take from the gradient */
    for (int64_t c = 0; c < C; c++) {
        slope[c] = (float)(-scale[c] * scale[c] * sums[C + c]);
        offset[c] = (float)(-scale[c] * sums[c]);
        by_added[row + c] = gain[c] * by_bias[row + c] + slope[c] * spread[c] + offset[c] * m->pixels;
    }
    free(sums);
#pragma omp parallel for if (alone)
    for (int64_t block = 0; block < count; block++)
        for (int64_t i = block * BLOCK * C; i < end(m, block) * C; i += C)
            for (int64_t c = 0; c < C; c++)
                by_x[i + c] = narrow(wide(by_x[i + c]) * gain[c] + (wide(own.x[i + c]) - own.centre[c]) * slope[c] + offset[c]);
}

/* Images are shared among the threads, unless there are too few. */
void activated(const Norm *m, value *y) {
    const int many = m->batch >= omp_get_max_threads();
#pragma omp parallel for if (many)
    for (int64_t image = 0; image < m->batch; image++) activate(m, y, image, !many);
}

void gradients(const Norm *m, const value *g, value *by_x, float *by_weight, float *by_bias, float *by_added) {
    const int many = m->batch >= omp_get_max_threads();
#pragma omp parallel for if (many)
    for (int64_t image = 0; image < m->batch; image++)
        differentiate(m, g, by_x, by_weight, by_bias, by_added, image, !many);
}
