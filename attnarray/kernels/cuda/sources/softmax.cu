// Softmax and log-softmax of rows, forward and backward. Reference: ops/softmax.py. Parallel over rows and within them.
// Memory: a row that its threads hold is read once, a longer one once per pass. Shared: that of `reduce`.
// Kernels that are called _held are for rows that are aligned and held: one span.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

// The logits of this thread, -inf where masked.
template <int N, bool HELD>
inline void read_logits(Global<const Stored> row, Global<const unsigned char> mask, int64 start, int64 width,
                        Real (&v)[N]) {
  read<Stored, HELD>(row, start, width, v, -infinity<Real>());
  if (mask) each<Stored, N, HELD>(start, width, [&](int e, Index<HELD> i) { if (!mask[i]) v[e] = -infinity<Real>(); });
}

template <int N, bool LOGARITHM, bool HELD>
inline void normalize(Global<const Stored> x, Global<const unsigned char> mask, int64 mask_apart, Global<Stored> out,
                      int64 rows, Index<HELD> width) {
  Real v[N];
  const Index<HELD> step = HELD ? 1 : span<Stored, N>();
  const bool held = HELD || width <= step;
  const Index<HELD> past = HELD ? 1 : width;
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    Global<const Stored> row = x + n * width;
    Global<const unsigned char> seen = mask;
    if (mask) seen = mask + n * mask_apart;
    Real row_max = -infinity<Real>();
    for (Index<HELD> start = 0; start < past; start += step) {
      read_logits<N, HELD>(row, seen, start, width, v);
      UNROLL for (int e = 0; e < N; e++) row_max = larger(row_max, v[e]);
    }
    const Real shift = softmax_shift(reduce_max(row_max, 0));
    Real row_sum = 0;
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) read_logits<N, HELD>(row, seen, start, width, v);
      UNROLL for (int e = 0; e < N; e++) {
        const Real weight = exponential(v[e] - shift);
        row_sum += weight;
        v[e] = LOGARITHM ? v[e] - shift : weight;
      }
    }
    row_sum = reduce_sum(row_sum, 1);
    row_sum = row_sum == 0 ? Real(1) : row_sum;
    const Real factor = LOGARITHM ? log(row_sum) : reciprocal(row_sum);
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) {
        read_logits<N, HELD>(row, seen, start, width, v);
        UNROLL for (int e = 0; e < N; e++) v[e] = LOGARITHM ? v[e] - shift : exponential(v[e] - shift);
      }
      UNROLL for (int c = 0; c < N; c += CHUNK<Stored>) {
        UNROLL for (int e = c; e < c + CHUNK<Stored>; e++) v[e] = LOGARITHM ? v[e] - factor : v[e] * factor;
        write_chunk<Stored, HELD>(out + n * width, position<Stored>(start, c), width, v + c);
      }
    }
    if (HELD) break;
  }
}

// Rows for which one block has all registers of a multiprocessor: few blocks loop over all rows, and prefetch the next one.
template <bool LOGARITHM>
inline void normalize_wide(Global<const Stored> x, Global<Stored> out, int rows, int width) {
  constexpr int N = HELD_ONE<Stored>, C = CHUNK<Stored>;
  if (sizeof(Stored) != 2) return;  // not used for wider numbers, whose rows are limited by memory bandwidth
  const Ahead<Stored, N> ahead(REDUCED<Real>, threadIdx.x, WIDE);
  // Offsets count from the thread's first chunk, so that those of the others are compile-time constants.
  const int mine = threadIdx.x * C, here = width - mine;
  auto fetch = [&](int n) {
    if (n < rows)
      UNROLL for (int c = 0; c < N; c += C) ahead.fetch(c, x + (int64(n) * width + mine), c * WIDE, here);
    commit_copies();
  };
  fetch(blockIdx.x);
  for (int n = blockIdx.x; n < rows; n += gridDim.x) {
    Real v[N], row_max = -infinity<Real>(), row_sum = 0;
    wait_copies<0>();
    UNROLL for (int c = 0; c < N; c += C) ahead.take(c, c * WIDE < here, v + c, -infinity<Real>());
    fetch(n + gridDim.x);
    UNROLL for (int e = 0; e < N; e++) row_max = larger(row_max, v[e]);
    const Real shift = softmax_shift(reduce_max(row_max, 0));
    UNROLL for (int e = 0; e < N; e++) {
      const Real weight = exponential(v[e] - shift);
      row_sum += weight;
      v[e] = LOGARITHM ? v[e] - shift : weight;
    }
    row_sum = reduce_sum(row_sum, 1);
    row_sum = row_sum == 0 ? Real(1) : row_sum;
    const Real factor = LOGARITHM ? log(row_sum) : reciprocal(row_sum);
    UNROLL for (int e = 0; e < N; e++) v[e] = LOGARITHM ? v[e] - factor : v[e] * factor;
    UNROLL for (int c = 0; c < N; c += C) write_chunk<Stored, true>(out + (int64(n) * width + mine), c * WIDE, here, v + c);
  }
}

// dx = y (dy - sum y dy), or for the logarithm dx = dy - e^y sum dy.
template <int N, bool LOGARITHM, bool HELD>
inline void differentiate(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int64 rows,
                          Index<HELD> width) {
  Real y[N], dy[N];
  const Index<HELD> step = HELD ? 1 : span<Stored, N>();
  const bool held = HELD || width <= step;
  const Index<HELD> past = HELD ? 1 : width;
  const Real hidden = LOGARITHM ? -infinity<Real>() : Real(0);  // where dy is masked, even if it is NaN
  int phase = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart(), phase++) {
    auto get = [&](Index<HELD> start) {
      read<Stored, HELD>(out + n * width, start, width, y, hidden);
      read<Stored, HELD>(dout + n * width, start, width, dy, Real(0));
      UNROLL for (int e = 0; e < N; e++)
        if (y[e] == hidden) dy[e] = 0;
    };
    Real row_sum = 0;
    for (Index<HELD> start = 0; start < past; start += step) {
      get(start);
      UNROLL for (int e = 0; e < N; e++) row_sum += LOGARITHM ? dy[e] : y[e] * dy[e];
    }
    row_sum = reduce_sum(row_sum, phase);
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) get(start);
      UNROLL for (int e = 0; e < N; e++)
        dy[e] = y[e] == hidden ? Real(0) : LOGARITHM ? dy[e] - exponential(y[e]) * row_sum : y[e] * (dy[e] - row_sum);
      write<Stored, HELD>(dx + n * width, start, width, dy);
    }
    if (HELD) break;
  }
}

// Rows with dy in registers and y in shared memory. Few blocks loop over all rows: the next y, and in 16 bits the next dy, are
// prefetched while a row is processed.
template <bool LOGARITHM>
inline void differentiate_wide(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int rows, int width) {
  constexpr int N = HELD_ONE<Stored>, C = CHUNK<Stored>;
  constexpr bool COPIED = sizeof(Stored) == 2;
  const Ahead<Stored, N> ys(REDUCED<Real>, threadIdx.x, WIDE), dys(REDUCED<Real> + ys.BYTES * WIDE, threadIdx.x, WIDE);
  const Real hidden = LOGARITHM ? -infinity<Real>() : Real(0);
  int n = blockIdx.x, phase = 0, next_width = width - int(threadIdx.x) * C;
  int64 next = int64(n) * width + threadIdx.x * C;
  Real dy[N];
  UNROLL for (int c = 0; c < N; c += C) {
    ys.fetch(c, out + next, c * WIDE, next_width);
    if (COPIED) dys.fetch(c, dout + next, c * WIDE, next_width);
  }
  for (; n < rows; n += gridDim.x) {
    const int64 from = next;
    const int here = width - int(threadIdx.x) * C;
    next += int64(gridDim.x) * width;
    if (n + int(gridDim.x) >= rows) next_width = 0;
    commit_copies();
    UNROLL for (int c = 0; !COPIED && c < N; c += C) read_chunk<Stored, true>(dout + from, c * WIDE, here, dy + c, Real(0));
    wait_copies<0>();
    Real y[C], row_sum = 0;
    UNROLL for (int c = 0; c < N; c += C) {
      if (COPIED) {
        dys.take(c, c * WIDE < here, dy + c, Real(0));
        dys.fetch(c, dout + next, c * WIDE, next_width);
      }
      ys.take(c, c * WIDE < here, y, hidden);
      // A zero in dy instead would take more registers than there are; the second loop does not use dy there either.
      UNROLL for (int e = 0; e < C; e++)
        if (y[e] != hidden) row_sum += LOGARITHM ? dy[c + e] : y[e] * dy[c + e];
    }
    commit_copies();
    row_sum = reduce_sum(row_sum, phase++);
    UNROLL for (int c = 0; c < N; c += C) {
      ys.take(c, c * WIDE < here, y, hidden);
      ys.fetch(c, out + next, c * WIDE, next_width);
      UNROLL for (int e = 0; e < C; e++)
        y[e] = y[e] == hidden ? Real(0)
               : LOGARITHM  ? dy[c + e] - exponential(y[e]) * row_sum
                            : y[e] * (dy[c + e] - row_sum);
      write_chunk<Stored, true>(dx + from, c * WIDE, here, y);
    }
  }
}

#define FORWARD(name, threads, N, LOGARITHM, HELD)                                                                     \
  KERNEL(threads) name(Global<const Stored> x, Global<const unsigned char> mask, int64 mask_apart, Global<Stored> out, \
                       int64 rows, int64 width) {                                                                      \
    normalize<N, LOGARITHM, HELD>(x, mask, mask_apart, out, rows, width);                                              \
  }                                                                                                                    \
  EXPORT(name)
FORWARD(softmax_forward, MOST_THREADS<Stored>, COUNT<Stored>, false, false)
FORWARD(softmax_forward_held, 1024, HELD_ONE<Stored>, false, true)
FORWARD(log_softmax_forward, MOST_THREADS<Stored>, COUNT<Stored>, true, false)
FORWARD(log_softmax_forward_held, 1024, HELD_ONE<Stored>, true, true)
#undef FORWARD

#define FORWARD(name, LOGARITHM)                                                              \
  KERNEL(WIDE) name(Global<const Stored> x, Global<Stored> out, int64 rows, int64 width) {    \
    normalize_wide<LOGARITHM>(x, out, rows, width);                                           \
  }                                                                                           \
  EXPORT(name)
FORWARD(softmax_forward_wide, false)
FORWARD(log_softmax_forward_wide, true)
#undef FORWARD

#define BACKWARD(name, threads, N, LOGARITHM, HELD)                                                                \
  KERNEL(threads) name(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int64 rows,         \
                       int64 width) {                                                                              \
    differentiate<N, LOGARITHM, HELD>(dout, out, dx, rows, width);                                                 \
  }                                                                                                                \
  EXPORT(name)
BACKWARD(softmax_backward, MOST_THREADS<Stored>, COUNT<Stored>, false, false)
BACKWARD(softmax_backward_held, 1024, HELD_TWO<Stored>, false, true)
BACKWARD(log_softmax_backward, MOST_THREADS<Stored>, COUNT<Stored>, true, false)
BACKWARD(log_softmax_backward_held, 1024, HELD_TWO<Stored>, true, true)
#undef BACKWARD

#define BACKWARD(name, LOGARITHM)                                                                             \
  KERNEL(WIDE) name(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int64 rows, int64 width) { \
    differentiate_wide<LOGARITHM>(dout, out, dx, rows, width);                                                      \
  }                                                                                                           \
  EXPORT(name)
BACKWARD(softmax_backward_wide, false)
BACKWARD(log_softmax_backward_wide, true)
#undef BACKWARD
