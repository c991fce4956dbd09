// Additive scores e_ij = sum_a w_a tanh(q_ia + k_ja) and their gradients, without an array of (T, S, A).
// Reference: attention/alignment/additive_core.py, in whose dtype the numbers are stored.
//
// tanh(q + k) = 1 - 2 r with r = 1 / (1 + e^2q e^2k): one exponential for each query and key, one reciprocal for each pair.
// Where a number is beyond MOST, or NaN, the sum is taken first. The error of a score is some roundings of sum |w_a|.
#include "rows.cuh"

using Real = Stored;

constexpr double MOST = 20;  // e^(4 MOST) is still a float32
constexpr int TILE = 32, DEPTH = 32, APART = DEPTH + 1;  // queries and keys of a block, features at a time

inline bool is_large(Real x) { return !(fabs(x) <= Real(MOST)); }

// Parallel over tiles of 32 queries and 32 keys; a thread of 16 x 16 has four pairs. Shared: 32 features of the tile.
KERNEL(256) additive_scores(Global<const Stored> q, Global<const Stored> k, Global<const Stored> w, Global<Stored> out,
                            int64 queries, int64 keys, int64 features, int64 query_tiles) {
  Shared<Real> of_q = shared<Real>(0), of_k = of_q + TILE * APART, of_w = of_k + TILE * APART;
  const int64 batch = blockIdx.x / query_tiles, i0 = blockIdx.x % query_tiles * TILE, j0 = int64(blockIdx.y) * TILE;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  Real r[2][2] = {{0, 0}, {0, 0}}, whole = 0;  // sums of w / (1 + e^2(q+k)); of w, plus what was taken as a tanh
  Real direct[2][2] = {{0, 0}, {0, 0}};
  for (int64 a0 = 0; a0 < features; a0 += DEPTH) {
    bool large = false;
    Real held_q[TILE * DEPTH / 256], held_k[TILE * DEPTH / 256];
    UNROLL for (int m = 0; m < TILE * DEPTH / 256; m++) {
      const int n = m * 256 + threadIdx.x, row = n / DEPTH;
      const int64 a = a0 + n % DEPTH;
      const bool has_q = i0 + row < queries && a < features, has_k = j0 + row < keys && a < features;
      held_q[m] = has_q ? Real(q[(batch * queries + i0 + row) * features + a]) : Real(0);
      held_k[m] = has_k ? Real(k[(batch * keys + j0 + row) * features + a]) : Real(0);
      large |= is_large(held_q[m]) || is_large(held_k[m]);
    }
    large = any_thread(large);  // also: all have read the features before
    UNROLL for (int m = 0; m < TILE * DEPTH / 256; m++) {
      const int n = m * 256 + threadIdx.x, at = n / DEPTH * APART + n % DEPTH;
      of_q[at] = large ? held_q[m] : Real(exp(2 * held_q[m]));
      of_k[at] = large ? held_k[m] : Real(exp(2 * held_k[m]));
    }
    if (threadIdx.x < DEPTH) of_w[threadIdx.x] = a0 + threadIdx.x < features ? Real(w[a0 + threadIdx.x]) : Real(0);
    sync_threads();
    const int depth = features - a0 < DEPTH ? int(features - a0) : DEPTH;
    for (int a = 0; a < depth; a++) {
      const Real weight = of_w[a];
      Real qs[2], ks[2];
      UNROLL for (int m = 0; m < 2; m++) {
        qs[m] = of_q[(y + 16 * m) * APART + a];
        ks[m] = of_k[(x + 16 * m) * APART + a];
      }
      if (!large) whole += weight;
      UNROLL for (int m = 0; m < 2; m++) UNROLL for (int n = 0; n < 2; n++) {
        if (large) direct[m][n] += weight * tanh(qs[m] + ks[n]);
        else r[m][n] += weight * reciprocal(1 + qs[m] * ks[n]);
      }
    }
  }
  UNROLL for (int m = 0; m < 2; m++) UNROLL for (int n = 0; n < 2; n++) {
    const int64 i = i0 + y + 16 * m, j = j0 + x + 16 * n;
    if (i < queries && j < keys) out[(batch * queries + i) * keys + j] = direct[m][n] + whole - 2 * r[m][n];
  }
}
EXPORT(additive_scores)

constexpr int ROWS = 8, THREADS = 128, STEP = 32;  // rows of a thread, features of a block, others at a time

// For rows x and others z, queries and keys or the other way round: the gradient of x, and if asked for that of w, one row
// of sums for each block of rows. The gradient of score (row, other) stands at row * row_apart + other * other_apart.
// Parallel over 8 rows and 128 features; a thread has one feature of 8 rows. Shared: the gradients of 8 x 32 scores.
KERNEL(128) additive_slopes(Global<const Stored> dscores, Global<const Stored> x, Global<const Stored> z,
                            Global<const Stored> w, Global<Stored> dx, Global<Stored> dw, int64 rows, int64 others,
                            int64 features, int64 row_apart, int64 other_apart, int64 row_blocks) {
  Shared<Real> of_scores = shared<Real>(0);
  const int64 batch = blockIdx.x / row_blocks, i0 = blockIdx.x % row_blocks * ROWS;
  const int64 a = int64(blockIdx.y) * THREADS + threadIdx.x;
  Real numbers[ROWS], exponentials[ROWS], sums[ROWS], weight_sum = 0;
  bool large = false;
  UNROLL for (int m = 0; m < ROWS; m++) {
    const bool there = i0 + m < rows && a < features;
    numbers[m] = there ? Real(x[(batch * rows + i0 + m) * features + a]) : Real(0);
    large |= is_large(numbers[m]);
    exponentials[m] = exp(2 * numbers[m]);
    sums[m] = 0;
  }
  for (int64 j0 = 0; j0 < others; j0 += STEP) {
    sync_threads();
    UNROLL for (int n = threadIdx.x; n < ROWS * STEP; n += THREADS) {
      const int64 i = i0 + n / STEP, j = j0 + n % STEP;
      const bool there = i < rows && j < others;
      of_scores[n] = there ? Real(dscores[batch * rows * others + i * row_apart + j * other_apart]) : Real(0);
    }
    sync_threads();
    const int64 past = others - j0 < STEP ? others - j0 : STEP;
    for (int64 j = 0; j < past && a < features; j++) {
      const Real other = z[(batch * others + j0 + j) * features + a], exponential = exp(2 * other);
      const bool direct = large || is_large(other);
      UNROLL for (int m = 0; m < ROWS; m++) {
        const Real d = of_scores[m * STEP + j];
        Real slope, t;  // the derivative of tanh, and tanh
        if (direct) {
          t = tanh(numbers[m] + other);
          slope = 1 - t * t;
        } else {
          const Real r = reciprocal(1 + exponentials[m] * exponential);
          t = 1 - 2 * r;
          slope = 4 * r * (1 - r);
        }
        sums[m] += d == 0 ? Real(0) : d * slope;
        weight_sum += d == 0 ? Real(0) : d * t;
      }
    }
  }
  if (a >= features) return;
  const Real weight = w[a];
  UNROLL for (int m = 0; m < ROWS; m++)
    if (i0 + m < rows) dx[(batch * rows + i0 + m) * features + a] = sums[m] * weight;
  if (dw) dw[int64(blockIdx.x) * features + a] = weight_sum;
}
EXPORT(additive_slopes)
