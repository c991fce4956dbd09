// Layer norm and RMS norm of rows, forward and backward. Reference: ops/norm.py. Parallel over rows and within them.
// Memory: a row that its threads hold is read once, a longer one once per pass. Shared: that of `reduce`, and in the
// backward of held rows the next ones and the weight, of short rows one row of sums for each that a block works on at once.
//
// Kernels that are called _held are for rows that are aligned and held: one span. Where rows are held, or are short, each
// thread sums the gradients of weight and bias for the columns that it owns, over all rows of its block; the blocks write
// a row of partial sums each. For longer rows parameter_sums sums the columns. So a sum has the same bits in every run.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

template <int N, bool CENTRED, bool HELD>
inline void normalize(Global<const Stored> x, Global<const Stored> weight, Global<const Stored> bias, Real eps,
                      Global<Stored> out, Global<Real> means, Global<Real> inverses, int64 rows, Index<HELD> width) {
  Real v[N];
  const Real size = width ? Real(width) : Real(1), share = reciprocal(size);
  const Index<HELD> step = HELD ? 1 : span<Stored, N>(), past = HELD ? 1 : width;
  const bool held = HELD || width <= step;
  int phase = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    Global<const Stored> row = x + n * width;
    Real mean = 0;
    if (CENTRED) {
      for (Index<HELD> start = 0; start < past; start += step) {
        read<Stored, HELD>(row, start, width, v, Real(0));
        UNROLL for (int e = 0; e < N; e++) mean = fma(v[e], SHARE<Real>, mean);
      }
      mean = exact_mean(reduce_sum(mean, phase++), size * SHARE<Real>, share / SHARE<Real>);
    }
    // Halved where there is a mean, so that the difference of two large numbers stays finite.
    const Real factor = CENTRED ? Real(0.5) : Real(1), shift = -factor * mean;
    Real squares = 0;
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held || !CENTRED) read<Stored, HELD>(row, start, width, v, Real(0));
      each<Stored, N, HELD>(start, width, [&](int e, Index<HELD>) {
        v[e] = fma(v[e], factor, shift);
        squares += v[e] * v[e];
      });
    }
    squares = reduce_sum(squares, phase++);
    Real shrink = 1;
    if (!(squares - squares == 0)) {  // they overflow
      shrink = SHRINK<Real>, squares = 0;
      for (Index<HELD> start = 0; start < past; start += step) {
        if (!held) read<Stored, HELD>(row, start, width, v, Real(0));
        each<Stored, N, HELD>(start, width, [&](int e, Index<HELD>) {
          v[e] = shrink * (held ? v[e] : fma(v[e], factor, shift));
          squares += v[e] * v[e];
        });
      }
      squares = reduce_sum(squares, phase++);
    }
    const Real inverse = inverse_deviation(squares * share, eps, factor, shrink);
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) {
        read<Stored, HELD>(row, start, width, v, Real(0));
        UNROLL for (int e = 0; e < N; e++) v[e] = shrink * fma(v[e], factor, shift);
      }
      UNROLL for (int c = 0; c < N; c += CHUNK<Stored>) {
        const Index<HELD> i = position<Stored>(start, c);
        Real chunk_values[CHUNK<Stored>];
        read_chunk<Stored, HELD>(weight, i, weight ? width : Index<HELD>(0), chunk_values, Real(1));
        UNROLL for (int e = 0; e < CHUNK<Stored>; e++) v[c + e] *= inverse * chunk_values[e];
        read_chunk<Stored, HELD>(bias, i, bias ? width : Index<HELD>(0), chunk_values, Real(0));
        UNROLL for (int e = 0; e < CHUNK<Stored>; e++) v[c + e] += chunk_values[e];
        write_chunk<Stored, HELD>(out + n * width, i, width, v + c);
      }
    }
    if (threadIdx.x == 0) {
      inverses[n] = inverse * factor * shrink;
      if (CENTRED) means[n] = mean;
    }
    if (HELD) break;
  }
}

// Write the sums of a block, those of its rows added in a fixed order.
template <int N> inline void write_sums(const Real (&sums)[N], Global<Real> partial, int64 apart, int64 width) {
  Global<Real> row = partial + int64(blockIdx.x) * apart;
  if (blockDim.y == 1) return each<Stored, N>(int64(0), width, [&](int e, int64 i) { row[i] = sums[e]; });
  Shared<Real> row_totals = shared<Real>(0);
  sync_threads();  // all threads have read the sums of another parameter
  each<Stored, N>(int64(0), width, [&](int e, int64 i) { row_totals[threadIdx.y * width + i] = sums[e]; });
  sync_threads();
  for (int64 i = threadIdx.y * 32 + threadIdx.x; i < width; i += 32 * blockDim.y) {
    Real total = 0;
    for (int y = 0; y < blockDim.y; y++) total += row_totals[y * width + i];
    row[i] = total;
  }
}

// With normal = (x - mean) / deviation and g = weight dy: dx = (g - mean(g) - normal mean(g normal)) / deviation.
// Of `dweights` and `dbiases`, where they are wanted, a block writes one row each; then rows must be short or held.
template <int N, bool CENTRED>
inline void differentiate(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means,
                          Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx,
                          Global<Real> dweights, Global<Real> dbiases, int64 apart, int64 rows, int64 width) {
  Real g[N], normal[N], dweight[N] = {}, dbias[N] = {};
  const Real share = reciprocal(Real(width));
  const int64 step = span<Stored, N>();
  const bool held = width <= step;
  int phase = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart(), phase++) {
    const Real mean = CENTRED ? Real(means[n]) : Real(0), inverse = inverses[n];
    Real sums[2] = {0, 0};
    auto get = [&](int64 start) {
      read<Stored>(dout + n * width, start, width, g, Real(0));
      read<Stored>(x + n * width, start, width, normal, mean);
      UNROLL for (int c = 0; c < N; c += CHUNK<Stored>) {
        Real scale[CHUNK<Stored>];
        read_chunk<Stored, false>(weight, position<Stored>(start, c), weight ? width : 0, scale, Real(1));
        UNROLL for (int e = 0; e < CHUNK<Stored>; e++) {
          normal[c + e] = x_hat(normal[c + e], mean, inverse);
          if (held) dweight[c + e] += g[c + e] * normal[c + e], dbias[c + e] += g[c + e];
          g[c + e] *= scale[e];
        }
      }
    };
    for (int64 start = 0; start < width; start += step) {
      get(start);
      UNROLL for (int e = 0; e < N; e++) sums[0] += g[e], sums[1] += g[e] * normal[e];
    }
    add_up(sums, phase);
    const Real total = CENTRED ? sums[0] * share : Real(0), product = sums[1] * share;
    for (int64 start = 0; start < width; start += step) {
      if (!held) get(start);
      UNROLL for (int e = 0; e < N; e++) g[e] = (g[e] - total - normal[e] * product) * inverse;
      write<Stored>(dx + n * width, start, width, g);
    }
  }
  if (dweights) write_sums<N>(dweight, dweights, apart, width);
  if (dbiases) write_sums<N>(dbias, dbiases, apart, width);
}

// The same for rows that are prefetched into shared memory while the previous one is summed. Beyond the row, dy is 0.
template <int N, bool CENTRED>
inline void differentiate_held(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means,
                               Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx,
                               Global<Real> dweights, Global<Real> dbiases, int64 apart, int64 rows, int width) {
  constexpr int C = CHUNK<Stored>;
  const int threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
  const Ahead<Stored, N> douts(REDUCED<Real>, thread, threads);
  const Ahead<Stored, N> xs(REDUCED<Real> + douts.BYTES * threads, thread, threads);
  const Ahead<Stored, N> scales(REDUCED<Real> + 2 * douts.BYTES * threads, thread, threads);  // the same for every row
  const Real share = reciprocal(Real(width));
  Real next_mean = 0, next_inverse = 0, dweight[N] = {}, dbias[N] = {};
  auto fetch = [&](int64 n) {
    if (n < rows) {
      next_inverse = inverses[n];
      if (CENTRED) next_mean = means[n];
      UNROLL for (int c = 0; c < N; c += C) {
        douts.fetch(c, dout + n * width, position<Stored>(0, c), width);
        xs.fetch(c, x + n * width, position<Stored>(0, c), width);
      }
    }
    commit_copies();
  };
  if (weight)
    UNROLL for (int c = 0; c < N; c += C) scales.fetch(c, weight, position<Stored>(0, c), width);
  fetch(first_row());
  int phase = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart(), phase++) {
    const Real mean = next_mean, inverse = next_inverse;
    Real g[N], normal[N], sums[2] = {0, 0};
    wait_copies<0>();
    UNROLL for (int c = 0; c < N; c += C) {
      douts.take(c, position<Stored>(0, c) < width, g + c);
      xs.take(c, position<Stored>(0, c) < width, normal + c);
    }
    fetch(n + rows_apart());
    UNROLL for (int e = 0; e < N; e++) {
      normal[e] = x_hat(normal[e], mean, inverse);
      dweight[e] = fma(g[e], normal[e], dweight[e]);
      if (CENTRED) dbias[e] += g[e];
    }
    if (weight)
      UNROLL for (int c = 0; c < N; c += C) {
        Real scale[C];
        scales.take(c, position<Stored>(0, c) < width, scale);
        UNROLL for (int e = 0; e < C; e++) g[c + e] *= scale[e];
      }
    UNROLL for (int e = 0; e < N; e++) sums[0] += g[e], sums[1] = fma(g[e], normal[e], sums[1]);
    add_up(sums, phase);
    const Real total = CENTRED ? sums[0] * share * inverse : Real(0), product = sums[1] * share * inverse;
    UNROLL for (int e = 0; e < N; e++) g[e] = fma(-normal[e], product, fma(g[e], inverse, -total));
    write<Stored, true>(dx + n * width, 0, width, g);
  }
  if (dweights) write_sums<N>(dweight, dweights, apart, width);
  if (dbiases) write_sums<N>(dbias, dbiases, apart, width);
}

// The gradients of weight and bias: a thread for each column, a strip of rows for each blockIdx.y, which writes its sums.
KERNEL(256) parameter_sums(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means,
                           Global<const Real> inverses, Global<Real> dweights, Global<Real> dbiases, int64 apart,
                           int64 rows, int64 width) {
  const int64 i = int64(blockIdx.x) * 256 + threadIdx.x;
  if (i >= width) return;
  Real dweight = 0, dbias = 0;
  for (int64 first = blockIdx.y; first < rows; first += 8 * gridDim.y)
    UNROLL for (int k = 0; k < 8; k++) {
      const int64 n = first + k * int64(gridDim.y);
      if (n >= rows) continue;
      const Real g = wide(dout[n * width + i]), mean = means ? Real(means[n]) : Real(0);
      dbias += g;
      if (dweights) dweight += g * x_hat(Real(wide(x[n * width + i])), mean, Real(inverses[n]));
    }
  if (dweights) dweights[int64(blockIdx.y) * apart + i] = dweight;
  if (dbiases) dbiases[int64(blockIdx.y) * apart + i] = dbias;
}
EXPORT(parameter_sums)

#define FORWARD(suffix, threads, N, HELD) \
  KERNEL(threads) layer_norm_forward##suffix(Global<const Stored> x, Global<const Stored> weight, \
                                             Global<const Stored> bias, Real eps, Global<Stored> out, \
                                             Global<Real> means, Global<Real> inverses, int64 rows, int64 width) { \
    normalize<N, true, HELD>(x, weight, bias, eps, out, means, inverses, rows, width); \
  } \
  EXPORT(layer_norm_forward##suffix) \
  KERNEL(threads) rms_norm_forward##suffix(Global<const Stored> x, Global<const Stored> weight, Real eps, \
                                           Global<Stored> out, Global<Real> inverses, int64 rows, int64 width) { \
    normalize<N, false, HELD>(x, weight, nullptr, eps, out, nullptr, inverses, rows, width); \
  } \
  EXPORT(rms_norm_forward##suffix)
FORWARD(, MOST_THREADS<Stored>, COUNT<Stored>, false)
FORWARD(_held, 1024, HELD_ONE<Stored>, true)
#undef FORWARD

#define BACKWARD(suffix, body, N) \
  KERNEL(512) layer_norm_backward##suffix(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means, \
                                          Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx, \
                                          Global<Real> dweights, Global<Real> dbiases, int64 apart, int64 rows, \
                                          int64 width) { \
    body<N, true>(dout, x, means, inverses, weight, dx, dweights, dbiases, apart, rows, width); \
  } \
  EXPORT(layer_norm_backward##suffix) \
  KERNEL(512) rms_norm_backward##suffix(Global<const Stored> dout, Global<const Stored> x, \
                                        Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx, \
                                        Global<Real> dweights, int64 apart, int64 rows, int64 width) { \
    body<N, false>(dout, x, nullptr, inverses, weight, dx, dweights, nullptr, apart, rows, width); \
  } \
  EXPORT(rms_norm_backward##suffix)
BACKWARD(, differentiate, COUNT<Stored>)
BACKWARD(_held, differentiate_held, 2 * COUNT<Stored>)
#undef BACKWARD
