/* The inner loops of the fold; strategies/kernels/__init__.py says what they compute and calls them.
 *
 * Plain C without Python's headers. Callers see to it that pointers are aligned, that arrays are as
 * long as they say, and that they do not overlap. Integers are unsigned, so that sums modulo 2**64
 * are what the language promises; multiplications are not fused with additions (-ffp-contract=off),
 * so that every machine rounds as numpy does.
 */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
#else
#define WIDE
#endif

#define BLOCK 4096 /* entries that the nearest cache holds while they are checked and added */
#define COLUMNS 128 /* of each row at a time; strategies/kernels/__init__.py knows it too */

/* 1 if no value is NaN, infinite or beyond the magnitude. */
WIDE static int within(const float *restrict x, int64_t n, double magnitude) {
    int beyond = 0;
    for (int64_t i = 0; i < n; i++) beyond |= !(x[i] <= magnitude && x[i] >= -magnitude);
    return !beyond;
}

WIDE static void add(const float *restrict x, uint64_t *restrict total, int64_t n, double factor,
                     double rounder, uint64_t weight) {
    uint64_t zero, rounded;
    memcpy(&zero, &rounder, sizeof zero);
    for (int64_t i = 0; i < n; i++) {
        double scaled = x[i] * factor;
        double moved = scaled + rounder;
        memcpy(&rounded, &moved, sizeof rounded);
        total[i] += (rounded - zero) * weight;
    }
}

/* Gives 0 unless all values are within the magnitude; what was added before one that is not is taken
 * out again, which modulo 2**64 leaves the sums as they were. */
int foedus_add(const float *x, uint64_t *total, int64_t n, double factor, double rounder,
               double magnitude, uint64_t weight) {
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t m = n - i < BLOCK ? n - i : BLOCK;
        if (!within(x + i, m, magnitude)) {
            add(x, total, i, factor, rounder, -weight);
            return 0;
        }
        add(x + i, total + i, m, factor, rounder, weight);
    }
    return 1;
}

/* In `near`, COLUMNS of every row, since rows that lie a power of two apart share their cache lines. */
#define EXCHANGE(INTEGER)                                                                          \
    WIDE void foedus_exchange_##INTEGER(INTEGER *rows, INTEGER *near, int64_t num_rows,            \
                                        int64_t length, const int32_t *pairs, int64_t num_pairs) { \
        for (int64_t start = 0; start < length; start += COLUMNS) {                                \
            int64_t columns = length - start < COLUMNS ? length - start : COLUMNS;                 \
            for (int64_t r = 0; r < num_rows; r++)                                                 \
                memcpy(near + r * COLUMNS, rows + r * length + start, columns * sizeof *rows);     \
            for (int64_t p = 0; p < num_pairs; p++) {                                              \
                INTEGER *restrict low = near + pairs[2 * p] * COLUMNS;                             \
                INTEGER *restrict high = near + pairs[2 * p + 1] * COLUMNS;                        \
                for (int64_t k = 0; k < COLUMNS; k++) {                                            \
                    INTEGER a = low[k], b = high[k];                                               \
                    low[k] = a < b ? a : b;                                                        \
                    high[k] = a < b ? b : a;                                                       \
                }                                                                                  \
            }                                                                                      \
            for (int64_t r = 0; r < num_rows; r++)                                                 \
                memcpy(rows + r * length + start, near + r * COLUMNS, columns * sizeof *rows);     \
        }                                                                                          \
    }

EXCHANGE(int32_t)
EXCHANGE(int64_t)
