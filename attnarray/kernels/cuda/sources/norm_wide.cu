// Layer norm and RMS norm, which has no means, for wide rows: aligned, and held as a whole by one block for a processor, with
// numbers of one array in registers and of others in shared memory. Reference: ops/norm.py. Parallel over rows and within
// them. Shared: that of `reduce`; forward the next row, weight and bias; backward the row of x, or sums of threads.
//
// Forward, few blocks loop over all rows. Backward, blocks have two tasks. One is a row: its dx. The other is a panel of
// columns: the gradients of weight and bias of `wave` rows, those of the blocks just before, so that the L2 cache still
// has them. A wave writes a row of partial sums.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;
constexpr int N = HELD_ONE<Stored>, C = CHUNK<Stored>;
constexpr int PANEL = 64;  // chunks
constexpr int KEPT = sizeof(Stored) == 4 ? 24 : N;  // of dy; the rest is read again, from cache

KERNEL(WIDE) norm_forward_wide(Global<const Stored> x, Global<const Stored> weight, Global<const Stored> bias, Real eps,
                               Global<Stored> out, Global<Real> means, Global<Real> inverses, int64 rows, int64 width) {
  if (sizeof(Stored) != 2) return;  // not used for wider numbers, whose rows are limited by memory bandwidth
  const Ahead<Stored, N> xs(REDUCED<Real>, threadIdx.x, WIDE), weights(REDUCED<Real> + xs.BYTES * WIDE, threadIdx.x, WIDE);
  const Ahead<Stored, N> biases(REDUCED<Real> + 2 * xs.BYTES * WIDE, threadIdx.x, WIDE);
  // Offsets count from the thread's first chunk, so that those of the others are compile-time constants.
  const int mine = threadIdx.x * C, here = int(width) - mine;
  const Real size = Real(width), share = reciprocal(size);
  auto fetch = [&](const Ahead<Stored, N>& to, Global<const Stored> row) {
    UNROLL for (int c = 0; c < N; c += C) to.fetch(c, row + mine, c * WIDE, here);
  };
  if (weight) fetch(weights, weight);
  if (bias) fetch(biases, bias);
  fetch(xs, x + blockIdx.x * width);
  commit_copies();
  int phase = 0;
  for (int64 n = blockIdx.x; n < rows; n += gridDim.x) {
    Real v[N], mean = 0, squares = 0;
    wait_copies<0>();
    UNROLL for (int c = 0; c < N; c += C) xs.take(c, c * WIDE < here, v + c);
    if (n + gridDim.x < rows) fetch(xs, x + (n + gridDim.x) * width);
    commit_copies();
    if (means) {
      UNROLL for (int e = 0; e < N; e++) mean = fma(v[e], SHARE<Real>, mean);
      mean = exact_mean(reduce_sum(mean, phase++), size * SHARE<Real>, share / SHARE<Real>);
    }
    // Halved, so that the difference of two large numbers stays finite.
    const Real factor = 0.5, shift = -factor * mean;
    UNROLL for (int c = 0; c < N; c += C)
      if (c * WIDE < here)
        UNROLL for (int e = c; e < c + C; e++) v[e] = fma(v[e], factor, shift), squares += v[e] * v[e];
    squares = reduce_sum(squares, phase++);
    Real shrink = 1;
    if (!(squares - squares == 0)) {  // they overflow
      shrink = SHRINK<Real>, squares = 0;
      UNROLL for (int c = 0; c < N; c += C)
        if (c * WIDE < here)
          UNROLL for (int e = c; e < c + C; e++) v[e] *= shrink, squares += v[e] * v[e];
      squares = reduce_sum(squares, phase++);
    }
    const Real inverse = inverse_deviation(squares * share, eps, factor, shrink);
    UNROLL for (int c = 0; c < N; c += C) {
      Real chunk_values[C];
      weights.take(c, weight && c * WIDE < here, chunk_values);
      UNROLL for (int e = 0; e < C; e++) v[c + e] *= weight ? inverse * chunk_values[e] : inverse;
      biases.take(c, bias && c * WIDE < here, chunk_values);
      UNROLL for (int e = 0; e < C; e++) v[c + e] += chunk_values[e];
      write_chunk<Stored, true>(out + (n * width + mine), c * WIDE, here, v + c);
    }
    if (threadIdx.x == 0) {
      inverses[n] = inverse * factor * shrink;
      if (means) means[n] = mean;
    }
  }
}
EXPORT(norm_forward_wide)

struct Rows {
  Global<const Stored> dout, x;
  Global<const Real> means, inverses;
  int64 count;
  int width;
  inline Real mean(int64 n) const { return means ? Real(means[n]) : Real(0); }
};

// With normal = (x - mean) / deviation and g = weight dy: dx = (g - mean(g) - normal mean(g normal)) / deviation.
template <bool CENTRED>
inline void differentiate(const Rows& rows, int n, Global<const Stored> weight, Global<Stored> dx) {
  // Offsets count from the thread's first chunk, so that those of the others are compile-time constants.
  const int mine = threadIdx.x * C, width = rows.width - mine;
  const int64 from = int64(n) * rows.width + mine;
  const Ahead<Stored, N> ahead(REDUCED<Real>, threadIdx.x, WIDE);
  Real g[KEPT], chunk_values[C], normal[C], sums[2] = {0, 0};
  UNROLL for (int c = 0; c < N; c += C) ahead.fetch(c, rows.x + from, c * WIDE, width);
  commit_copies();
  const Real mean = CENTRED ? rows.mean(n) : Real(0), inverse = rows.inverses[n];
  auto read_g = [&](int c, Real* to) {
    read_chunk<Stored, true>(rows.dout + from, c * WIDE, width, to, Real(0));
    if (!weight) return;
    read_chunk<Stored, true>(weight + mine, c * WIDE, width, normal, Real(0));
    UNROLL for (int e = 0; e < C; e++) to[e] *= normal[e];
  };
  auto read_normal = [&](int c) {
    ahead.take(c, c * WIDE < width, normal);
    UNROLL for (int e = 0; e < C; e++) normal[e] = x_hat(normal[e], mean, inverse);
  };
  UNROLL for (int c = 0; c < KEPT; c += C) read_g(c, g + c);
  wait_copies<0>();
  UNROLL for (int c = 0; c < N; c += C) {
    if (c >= KEPT) read_g(c, chunk_values);
    read_normal(c);
    UNROLL for (int e = 0; e < C; e++) {
      const Real v = c < KEPT ? g[c % KEPT + e] : chunk_values[e];
      sums[0] += v, sums[1] = fma(v, normal[e], sums[1]);
    }
  }
  add_up(sums, 0);
  const Real share = reciprocal(Real(rows.width)) * inverse;
  const Real total = CENTRED ? sums[0] * share : Real(0), product = sums[1] * share;
  UNROLL for (int c = 0; c < N; c += C) {
    if (c >= KEPT) read_g(c, chunk_values);
    read_normal(c);
    UNROLL for (int e = 0; e < C; e++) {
      const Real v = c < KEPT ? g[c % KEPT + e] : chunk_values[e];
      normal[e] = fma(-normal[e], product, fma(v, inverse, -total));
    }
    write_chunk<Stored, true>(dx + from, c * WIDE, width, normal);
  }
}

// Sum the columns of a panel over the rows [first, last): a thread sums one chunk over every few rows.
inline void sum_columns(const Rows& rows, int panel, int64 first, int64 last, Global<Real> dweights, Global<Real> dbiases) {
  const int strips = WIDE / PANEL, strip = threadIdx.x / PANEL;
  const int i = (panel * PANEL + threadIdx.x % PANEL) * C;
  Real dweight[C] = {}, dbias[C] = {};
  constexpr int TOGETHER = 2;
  for (int64 start = first + strip; start < last && i < rows.width; start += TOGETHER * strips) {
    Stored d[TOGETHER][C], x[TOGETHER][C];
    UNROLL for (int k = 0; k < TOGETHER; k++) {
      const int64 n = start + k * strips;
      if (n >= last) continue;
      load16<Stored>(rows.dout + n * rows.width, i, d[k]);
      load16<Stored>(rows.x + n * rows.width, i, x[k]);
    }
    UNROLL for (int k = 0; k < TOGETHER; k++) {
      const int64 n = start + k * strips;
      if (n >= last) continue;
      const Real mean = rows.mean(n), inverse = rows.inverses[n];
      UNROLL for (int e = 0; e < C; e++) {
        const Real g = wide(d[k][e]);
        dbias[e] += g, dweight[e] += g * x_hat(Real(wide(x[k][e])), mean, inverse);
      }
    }
  }
  Shared<Real> thread_sums = shared<Real>(0);
  auto add_strips = [&](const Real (&sums)[C], Global<Real> out) {
    sync_threads();  // all threads have read the sums of another parameter
    UNROLL for (int e = 0; e < C; e++) thread_sums[e * WIDE + threadIdx.x] = sums[e];
    sync_threads();
    for (int column = threadIdx.x; column < PANEL * C; column += WIDE) {
      Real total = 0;
      for (int s = 0; s < strips; s++) total += thread_sums[column / PANEL * WIDE + s * PANEL + column % PANEL];
      const int i = (panel * PANEL + column % PANEL) * C + column / PANEL;
      if (i < rows.width) out[i] = total;
    }
  };
  if (dweights) add_strips(dweight, dweights);
  if (dbiases) add_strips(dbias, dbiases);
}

KERNEL(WIDE) norm_backward_wide(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means,
                                Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx,
                                Global<Real> dweights, Global<Real> dbiases, int64 apart, int64 wave, int64 panels,
                                int64 count, int64 width) {
  const Rows rows = {dout, x, means, inverses, count, int(width)};
  const int period = int(wave + panels), at = int(blockIdx.x) / period, task = int(blockIdx.x) % period;
  const int64 first = at * wave, last = first + wave < count ? first + wave : count;
  if (task >= wave) {
    Global<Real> weight_out = dweights, bias_out = dbiases;
    if (dweights) weight_out = dweights + at * apart;
    if (dbiases) bias_out = dbiases + at * apart;
    sum_columns(rows, task - int(wave), first, last, weight_out, bias_out);
  } else if (first + task < last) {
    if (means) differentiate<true>(rows, int(first) + task, weight, dx);
    else differentiate<false>(rows, int(first) + task, weight, dx);
  }
}
EXPORT(norm_backward_wide)
