// Layer norm and RMS norm of rows, forward and backward. Reference: ops/norm.py. Parallel over rows and within them.
// Memory: a row that its threads hold is read once, a longer one once per pass. Shared: that of `reduce`, and in the
// backward of short rows one row of sums for each row that a block works on at once.
//
// Kernels that are called _held are for rows that are aligned and held: one span. Where rows are held, or are short, each
// thread sums the gradients of weight and bias for the columns that it owns, over all rows of its block; the blocks write
// a row of partial sums each. For longer rows parameter_sums goes down the columns. So a sum has the same bits in every run.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

// sum / size as exactly as a division, which would be a call: the mean of equal numbers is one of them.
inline Real mean_of(Real sum, Real size, Real share) {
  const Real mean = sum * share, left = fma(-mean, size, sum);
  return left == left ? fma(left, share, mean) : mean;
}

template <int N, bool CENTRED, bool HELD>
inline void normalize(Global<const Stored> x, Global<const Stored> weight, Global<const Stored> bias, Real eps,
                      Global<Stored> out, Global<Real> means, Global<Real> inverses, int64 rows, Index<HELD> width) {
  Real v[N];
  const Real size = width ? Real(width) : Real(1), share = reciprocal(size);
  const Index<HELD> step = HELD ? 1 : span<Stored, N>(), past = HELD ? 1 : width;
  const bool held = HELD || width <= step;
  int turn = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    Global<const Stored> row = x + n * width;
    Real mean = 0;
    if (CENTRED) {
      for (Index<HELD> start = 0; start < past; start += step) {
        read<Stored, HELD>(row, start, width, v, Real(0));
        UNROLL for (int e = 0; e < N; e++) mean += v[e];
      }
      mean = mean_of(sum_of(mean, turn++), size, share);
    }
    Real squares = 0;
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held || !CENTRED) read<Stored, HELD>(row, start, width, v, Real(0));
      each<Stored, N, HELD>(start, width, [&](int e, Index<HELD>) {
        v[e] -= mean;
        squares += v[e] * v[e];
      });
    }
    const Real inverse = inverse_root(sum_of(squares, turn++) * share + eps);
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) {
        read<Stored, HELD>(row, start, width, v, Real(0));
        UNROLL for (int e = 0; e < N; e++) v[e] -= mean;
      }
      UNROLL for (int c = 0; c < N; c += CHUNK<Stored>) {
        const Index<HELD> i = place<Stored>(start, c);
        Real of_chunk[CHUNK<Stored>];
        read_chunk<Stored, HELD>(weight, i, weight ? width : Index<HELD>(0), of_chunk, Real(1));
        UNROLL for (int e = 0; e < CHUNK<Stored>; e++) v[c + e] *= inverse * of_chunk[e];
        read_chunk<Stored, HELD>(bias, i, bias ? width : Index<HELD>(0), of_chunk, Real(0));
        UNROLL for (int e = 0; e < CHUNK<Stored>; e++) v[c + e] += of_chunk[e];
        write_chunk<Stored, HELD>(out + n * width, i, width, v + c);
      }
    }
    if (threadIdx.x == 0) {
      inverses[n] = inverse;
      if (CENTRED) means[n] = mean;
    }
    if (HELD) break;
  }
}

// The sums of a block, those of its rows added up in their order.
template <int N> inline void write_sums(const Real (&sums)[N], Global<Real> partial, int64 apart, int64 width) {
  Global<Real> row = partial + int64(blockIdx.x) * apart;
  if (blockDim.y == 1) return each<Stored, N>(int64(0), width, [&](int e, int64 i) { row[i] = sums[e]; });
  Shared<Real> of_rows = shared<Real>(0);
  sync_threads();  // those of another parameter have been read
  each<Stored, N>(int64(0), width, [&](int e, int64 i) { of_rows[threadIdx.y * width + i] = sums[e]; });
  sync_threads();
  for (int64 i = threadIdx.y * 32 + threadIdx.x; i < width; i += 32 * blockDim.y) {
    Real total = 0;
    for (int y = 0; y < blockDim.y; y++) total += of_rows[y * width + i];
    row[i] = total;
  }
}

// With normal = (x - mean) / deviation and g = weight dy: dx = (g - mean(g) - normal mean(g normal)) / deviation.
// Of `dweights` and `dbiases`, where they are wanted, a block writes one row each; then rows must be short or held.
template <int N, bool CENTRED, bool HELD>
inline void differentiate(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means,
                          Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx,
                          Global<Real> dweights, Global<Real> dbiases, int64 apart, int64 rows, Index<HELD> width) {
  constexpr int ROW_CHUNKS = N / CHUNK<Stored>;
  Real g[N], normal[N], dweight[N] = {}, dbias[N] = {};
  const Real share = reciprocal(Real(width));
  const Index<HELD> step = HELD ? 1 : span<Stored, N>(), past = HELD ? 1 : width;
  const bool held = HELD || width <= step;
  int turn = 0;
  // A row that is held comes through shared memory, each chunk by the thread that takes it, while the one before is summed.
  Shared<Stored> mine = shared<Stored>(128 * sizeof(Real)) + (threadIdx.y * blockDim.x + threadIdx.x) * CHUNK<Stored>;
  const int chunks_apart = blockDim.x * blockDim.y * CHUNK<Stored>;
  Real next_mean = 0, next_inverse = 0;
  auto fetch = [&](int64 n) {
    if (n >= rows) return;
    next_inverse = inverses[n];
    if (CENTRED) next_mean = means[n];
    UNROLL for (int k = 0; HELD && k < ROW_CHUNKS; k++) {
      const Index<HELD> i = place<Stored>(Index<HELD>(0), k * CHUNK<Stored>);
      if (i >= width) continue;
      copy_async<Stored>(mine + k * chunks_apart, dout + (n * width + i));
      copy_async<Stored>(mine + (ROW_CHUNKS + k) * chunks_apart, x + (n * width + i));
    }
    if (HELD) commit_copies();
  };
  auto take = [&](int k, Real* numbers, Real beyond) {
    Stored chunk[CHUNK<Stored>] = {};
    const bool there = place<Stored>(Index<HELD>(0), k % ROW_CHUNKS * CHUNK<Stored>) < width;
    if (there) load16<Stored>(Shared<const Stored>(mine), k * chunks_apart, chunk);
    UNROLL for (int e = 0; e < CHUNK<Stored>; e++) numbers[e] = there ? Real(wide(chunk[e])) : beyond;
  };
  fetch(first_row());
  for (int64 n = first_row(); n < rows; n += rows_apart(), turn++) {
    const Real mean = next_mean, inverse = next_inverse;
    Real sums[2] = {0, 0};
    if (HELD) {
      wait_copies<0>();
      UNROLL for (int k = 0; k < ROW_CHUNKS; k++) {
        take(k, g + k * CHUNK<Stored>, Real(0));
        take(ROW_CHUNKS + k, normal + k * CHUNK<Stored>, mean);
      }
    }
    fetch(n + rows_apart());
    auto get = [&](Index<HELD> start) {
      if (!HELD) {
        read<Stored>(dout + n * width, start, width, g, Real(0));
        read<Stored>(x + n * width, start, width, normal, mean);
      }
      UNROLL for (int c = 0; c < N; c += CHUNK<Stored>) {
        Real scale[CHUNK<Stored>];
        read_chunk<Stored, HELD>(weight, place<Stored>(start, c), weight ? width : Index<HELD>(0), scale, Real(1));
        UNROLL for (int e = 0; e < CHUNK<Stored>; e++) {
          normal[c + e] = (normal[c + e] - mean) * inverse;
          if (held) dweight[c + e] += g[c + e] * normal[c + e], dbias[c + e] += g[c + e];
          g[c + e] *= scale[e];
        }
      }
    };
    for (Index<HELD> start = 0; start < past; start += step) {
      get(start);
      UNROLL for (int e = 0; e < N; e++) sums[0] += g[e], sums[1] += g[e] * normal[e];
    }
    add_up(sums, turn);
    const Real total = CENTRED ? sums[0] * share : Real(0), product = sums[1] * share;
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) get(start);
      UNROLL for (int e = 0; e < N; e++) g[e] = (g[e] - total - normal[e] * product) * inverse;
      write<Stored, HELD>(dx + n * width, start, width, g);
    }
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
      if (dweights) dweight += g * (wide(x[n * width + i]) - mean) * inverses[n];
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
FORWARD(_held, 1024, OF_ONE<Stored>, true)
#undef FORWARD

#define BACKWARD(suffix, threads, N, HELD) \
  KERNEL(threads) layer_norm_backward##suffix(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means, \
                                          Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx, \
                                          Global<Real> dweights, Global<Real> dbiases, int64 apart, int64 rows, \
                                          int64 width) { \
    differentiate<N, true, HELD>(dout, x, means, inverses, weight, dx, dweights, dbiases, apart, rows, width); \
  } \
  EXPORT(layer_norm_backward##suffix) \
  KERNEL(threads) rms_norm_backward##suffix(Global<const Stored> dout, Global<const Stored> x, \
                                        Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx, \
                                        Global<Real> dweights, int64 apart, int64 rows, int64 width) { \
    differentiate<N, false, HELD>(dout, x, nullptr, inverses, weight, dx, dweights, nullptr, apart, rows, width); \
  } \
  EXPORT(rms_norm_backward##suffix)
BACKWARD(, 512, COUNT<Stored>, false)
BACKWARD(_held, 512, 2 * COUNT<Stored>, true)
#undef BACKWARD
