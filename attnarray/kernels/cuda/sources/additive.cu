// Additive scores e_ij = sum_a w_a tanh(q_ia + k_ja) and their gradients, without an array of (T, S, A).
// Reference: attention/alignment/additive.py, in whose dtype the numbers are stored.
//
// tanh(q + k) = 1 - 2 r with r = 1 / (1 + e^2q e^2k): one exponential for each query and key. A reciprocal takes as long as
// eight products, so two share one: 1 / c and 1 / d are d and c times 1 / (c d). Where |x| > MOST, or NaN, the
// sum is computed first. The error of a score is a few roundings of sum |w_a|.
#include "rows.cuh"

using Real = Stored;

constexpr double MOST = 10;  // (1 + e^(4 MOST))^2 has a reciprocal that is a normal float32
constexpr int TILE = 64, DEPTH = 32, APART = DEPTH + 4;  // queries and keys of a block, features at a time

inline bool is_large(Real x) { return !(fabs(x) <= Real(MOST)); }

// 1 / (1 + e^2x) for any x; from 40 on it is 0 up to rounding.
inline Real complement(Real x) { return reciprocal(Real(1) + Real(exp(2 * (x > Real(40) ? Real(40) : x)))); }

inline void read4(Shared<const Real> p, int at, Real (&out)[4]) {
  UNROLL for (int c = 0; c < 4; c += CHUNK<Real>) {
    Real chunk[CHUNK<Real>];
    load16<Real>(p, at + c, chunk);
    UNROLL for (int e = 0; e < CHUNK<Real>; e++) out[c + e] = chunk[e];
  }
}

// Parallel over tiles of 64 queries and 64 keys; a warp has 16 x 32 pairs, a thread 4 x 4. Shared: 32 features of the tile.
KERNEL_TOGETHER(256, sizeof(Real) == 4 ? 3 : 1) additive_scores(Global<const Stored> q, Global<const Stored> k, Global<const Stored> w, Global<Stored> out,
                            int64 queries, int64 keys, int64 features, int64 query_tiles) {
  constexpr int TILE_WARPS = 8, EACH = TILE / TILE_WARPS;
  Shared<Real> q_tile = shared<Real>(0), k_tile = q_tile + TILE * APART, w_tile = k_tile + TILE * APART;
  const int64 batch = blockIdx.x / query_tiles, i0 = blockIdx.x % query_tiles * TILE, j0 = int64(blockIdx.y) * TILE;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_query = warp / 2 * 16, first_key = warp % 2 * 32, y = first_query + lane / 8, x = first_key + lane % 8;
  const bool busy = i0 + first_query < queries && j0 + first_key < keys;
  Real sums[4][4] = {{0}}, whole = 0;  // of w r, and of w
  for (int64 a0 = 0; a0 < features; a0 += DEPTH) {
    bool large = false;
    Real held_q[EACH], held_k[EACH];
    const int64 a = a0 + lane, q_offset = (batch * queries + i0 + warp) * features + a;
    const int64 k_offset = (batch * keys + j0 + warp) * features + a;
    UNROLL for (int m = 0; m < EACH; m++) {
      const int64 row = warp + m * TILE_WARPS, on = m * TILE_WARPS * features;
      held_q[m] = i0 + row < queries && a < features ? Real(q[q_offset + on]) : Real(0);
      held_k[m] = j0 + row < keys && a < features ? Real(k[k_offset + on]) : Real(0);
      large |= is_large(held_q[m]) || is_large(held_k[m]);
    }
    large = any_thread(large);  // also a barrier: all threads have read the previous features
    UNROLL for (int m = 0; m < EACH; m++) {
      const int at = (warp + m * TILE_WARPS) * APART + lane;
      q_tile[at] = large ? held_q[m] : Real(exp(2 * held_q[m]));
      k_tile[at] = large ? held_k[m] : Real(exp(2 * held_k[m]));
    }
    if (threadIdx.x < DEPTH) w_tile[threadIdx.x] = a0 + threadIdx.x < features ? Real(w[a0 + threadIdx.x]) : Real(0);
    sync_threads();
    const int depth = features - a0 < DEPTH ? int(features - a0) : DEPTH;
    for (int a = 0; a < depth && busy; a += large ? 1 : 4) {
      if (large) {
        const Real weight = w_tile[a];
        whole += weight;
        UNROLL for (int n = 0; n < 4; n++) {
          const Real number = k_tile[(x + 8 * n) * APART + a];
          UNROLL for (int m = 0; m < 4; m++) sums[m][n] += weight * complement(q_tile[(y + 4 * m) * APART + a] + number);
        }
        continue;
      }
      Real ws[4], qs[4][4], ks[4][4];
      read4(w_tile, a, ws);
      UNROLL for (int m = 0; m < 4; m++) {
        whole += ws[m];
        read4(q_tile, (y + 4 * m) * APART + a, qs[m]);
        read4(k_tile, (x + 8 * m) * APART + a, ks[m]);
      }
      UNROLL for (int m = 0; m < 4; m++) UNROLL for (int n = 0; n < 4; n++) UNROLL for (int e = 0; e < 4; e += 2) {
        const Real c = 1 + qs[m][e] * ks[n][e], d = 1 + qs[m][e + 1] * ks[n][e + 1];
        sums[m][n] += (ws[e] * d + ws[e + 1] * c) * reciprocal(c * d);
      }
    }
  }
  if (!busy) return;
  UNROLL for (int m = 0; m < 4; m++) UNROLL for (int n = 0; n < 4; n++) {
    const int64 i = i0 + y + 4 * m, j = j0 + x + 8 * n;
    if (i < queries && j < keys) out[(batch * queries + i) * keys + j] = whole - 2 * sums[m][n];
  }
}
EXPORT(additive_scores)

constexpr int ROWS = sizeof(Real) == 4 ? 16 : 8, WARPS = 4, WIDTH = 64;  // rows of a warp, features of a block
constexpr int STEP = 32;                                                 // others at a time

// For rows x and others z, queries and keys or keys and queries: sums for the gradients of both in one pass,
//   dx[split, row] = sum_other d r (1 - r)  and  dz[block of rows, other] = sum_row d r (1 - r),
// which `additive_gradients` adds up, and sum d (1 - 2 r) for w, one row for each warp. The gradient d of score (row, other)
// is at row * row_apart + other * other_apart.
// Parallel over 64 rows, 64 features and ranges of `range` others; a warp has 16 rows, a lane two features of each. For
// float64 the rows are half as many. Shared: gradients of scores, 32 others, and their sums by each warp.
KERNEL_TOGETHER(128, sizeof(Real) == 4 ? 3 : 2) additive_slopes(Global<const Stored> dscores, Global<const Stored> x, Global<const Stored> z,
                            Global<Stored> dx, Global<Stored> dz, Global<Stored> dw, int64 rows, int64 others,
                            int64 features, int64 row_apart, int64 other_apart, int64 row_blocks, int64 range) {
  constexpr int THREADS = 32 * WARPS, EACH = STEP * WIDTH / THREADS, PAIRED = 2;  // of 4: reciprocals and products overlap
  Shared<Real> z_tile = shared<Real>(0), score_tile = z_tile + STEP * WIDTH, warp_sums = score_tile + WARPS * ROWS * STEP;
  const int64 batches = gridDim.x / row_blocks, batch = blockIdx.x / row_blocks, block = blockIdx.x % row_blocks;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64 i0 = block * WARPS * ROWS, own = i0 + warp * ROWS, a0 = int64(blockIdx.y) * WIDTH;
  const int64 first = blockIdx.z * range, last = others - first < range ? others : first + range;
  const int64 left = (rows - i0 + ROWS - 1) / ROWS;
  const int busy = left < WARPS ? int(left) : WARPS;  // warps that have rows
  Real exponentials[ROWS][2], sums[ROWS][2], w_sums[2] = {0, 0}, total = 0;
  bool own_large = false;
  UNROLL for (int m = 0; m < ROWS; m++) UNROLL for (int f = 0; f < 2; f++) {
    const int64 i = own + m, a = a0 + lane + 32 * f;
    const Real number = i < rows && a < features ? Real(x[(batch * rows + i) * features + a]) : Real(0);
    own_large |= is_large(number);
    exponentials[m][f] = exp(2 * number);
    sums[m][f] = 0;
  }
  for (int64 j0 = first; j0 < last; j0 += STEP) {
    bool large = own_large;
    Real held[EACH];
    UNROLL for (int m = 0; m < EACH; m++) {
      const int n = m * THREADS + threadIdx.x;
      const int64 j = j0 + n / WIDTH, a = a0 + n % WIDTH;
      held[m] = j < last && a < features ? Real(z[(batch * others + j) * features + a]) : Real(0);
      large |= is_large(held[m]);
    }
    large = any_thread(large);  // also a barrier: all threads have read the previous others
    UNROLL for (int m = 0; m < EACH; m++) z_tile[m * THREADS + threadIdx.x] = large ? held[m] : Real(exp(2 * held[m]));
    UNROLL for (int m = 0; m < ROWS; m++) {
      const int64 i = own + m, j = j0 + lane;
      const Real d = i < rows && j < last ? Real(dscores[batch * rows * others + i * row_apart + j * other_apart]) : Real(0);
      score_tile[(warp * ROWS + m) * STEP + lane] = d;
      total += d;
    }
    sync_threads();
    const int past = last - j0 < STEP ? int(last - j0) : STEP;
    for (int j = 0; j < past && warp < busy; j += 4) {
      Real zs[4][2], dzs[4][2] = {{0}}, weighted[2] = {0, 0};
      UNROLL for (int n = 0; n < 4; n++) UNROLL for (int f = 0; f < 2; f++) zs[n][f] = z_tile[(j + n) * WIDTH + lane + 32 * f];
      if (large) {
        for (int m = 0; m < ROWS; m++) {
          Real d[4], row_sums[2] = {0, 0};
          read4(score_tile, (warp * ROWS + m) * STEP + j, d);
          UNROLL for (int f = 0; f < 2; f++) {
            const int64 i = own + m, a = a0 + lane + 32 * f;
            const Real number = i < rows && a < features ? Real(x[(batch * rows + i) * features + a]) : Real(0);
            UNROLL for (int n = 0; n < 4; n++) {
              const Real r = d[n] == 0 ? Real(0) : complement(number + zs[n][f]), slope = r - r * r;
              row_sums[f] += d[n] * slope;
              dzs[n][f] += d[n] * slope;
              weighted[f] += d[n] * r;
            }
          }
          UNROLL for (int here = 0; here < ROWS; here++) UNROLL for (int f = 0; f < 2; f++)
            if (here == m) sums[here][f] += row_sums[f];  // registers cannot be indexed
        }
      } else {
        UNROLL for (int m = 0; m < ROWS; m++) {
          Real d[4];
          read4(score_tile, (warp * ROWS + m) * STEP + j, d);
          UNROLL for (int n = 0; n < 4; n++) {
            const Real b = 1 + exponentials[m][0] * zs[n][0], c = 1 + exponentials[m][1] * zs[n][1];
            const Real joint = n < PAIRED ? reciprocal(b * c) : Real(0);
            const Real r[2] = {n < PAIRED ? joint * c : reciprocal(b), n < PAIRED ? joint * b : reciprocal(c)};
            UNROLL for (int f = 0; f < 2; f++) {
              const Real slope = r[f] - r[f] * r[f];
              sums[m][f] += d[n] * slope;
              dzs[n][f] += d[n] * slope;
              weighted[f] += d[n] * r[f];
            }
          }
        }
      }
      UNROLL for (int f = 0; f < 2; f++) w_sums[f] += weighted[f];  // blocked sums have less rounding error
      UNROLL for (int n = 0; n < 4; n++) UNROLL for (int f = 0; f < 2; f++)
        warp_sums[(warp * STEP + j + n) * WIDTH + lane + 32 * f] = dzs[n][f];
    }
    sync_threads();
    for (int n = threadIdx.x; n < past * WIDTH; n += THREADS) {
      const int64 a = a0 + n % WIDTH;
      Real sum = 0;
      for (int other_warp = 0; other_warp < busy; other_warp++) sum += warp_sums[other_warp * STEP * WIDTH + n];
      if (a < features) dz[((block * batches + batch) * others + j0 + n / WIDTH) * features + a] = sum;
    }
  }
  UNROLL for (int lanes = 16; lanes; lanes /= 2) total += shuffle_xor(total, lanes);
  UNROLL for (int f = 0; f < 2; f++) {
    const int64 a = a0 + lane + 32 * f;
    if (a >= features) continue;
    dw[((int64(blockIdx.z) * gridDim.x + blockIdx.x) * WARPS + warp) * features + a] = total - 2 * w_sums[f];
    UNROLL for (int m = 0; m < ROWS; m++)
      if (own + m < rows) dx[((blockIdx.z * batches + batch) * rows + own + m) * features + a] = sums[m][f];
  }
}
EXPORT(additive_slopes)

// out[row, a] = 4 w_a sum_part partial[part, row, a]. Parallel over rows, four to a block, and features.
KERNEL(256) additive_gradients(Global<const Stored> partial, Global<const Stored> w, Global<Stored> out, int64 parts,
                               int64 rows, int64 features) {
  const int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  for (int64 a = threadIdx.x; a < features; a += blockDim.x) {
    Real sum = 0;
    for (int64 part = 0; part < parts; part++) sum += partial[(part * rows + row) * features + a];
    out[row * features + a] = 4 * Real(w[a]) * sum;
  }
}
EXPORT(additive_gradients)
