// Softmax and log-softmax of rows, forward and backward. Reference: ops/softmax.py. Parallel over rows and within them.
// Memory: a row that its threads hold is read once, a longer one once per pass. Shared: that of `reduce`.
// Kernels that are called _held are for rows that are aligned and held: one span.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

// The logits of this thread: -inf where the mask hides them.
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
    Real largest = -infinity<Real>();
    for (Index<HELD> start = 0; start < past; start += step) {
      read_logits<N, HELD>(row, seen, start, width, v);
      UNROLL for (int e = 0; e < N; e++) largest = larger(largest, v[e]);
    }
    const Real shift = shift_of(largest_of(largest, 0));
    Real total = 0;
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) read_logits<N, HELD>(row, seen, start, width, v);
      UNROLL for (int e = 0; e < N; e++) {
        const Real weight = exponential(v[e] - shift);
        total += weight;
        v[e] = LOGARITHM ? v[e] - shift : weight;
      }
    }
    total = sum_of(total, 1);
    total = total == 0 ? Real(1) : total;
    const Real factor = LOGARITHM ? log(total) : reciprocal(total);
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) {
        read_logits<N, HELD>(row, seen, start, width, v);
        UNROLL for (int e = 0; e < N; e++) v[e] = LOGARITHM ? v[e] - shift : exponential(v[e] - shift);
      }
      UNROLL for (int c = 0; c < N; c += CHUNK<Stored>) {
        UNROLL for (int e = c; e < c + CHUNK<Stored>; e++) v[e] = LOGARITHM ? v[e] - factor : v[e] * factor;
        write_chunk<Stored, HELD>(out + n * width, place<Stored>(start, c), width, v + c);
      }
    }
    if (HELD) break;
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
  int turn = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart(), turn++) {
    auto get = [&](Index<HELD> start) {
      read<Stored, HELD>(out + n * width, start, width, y, LOGARITHM ? -infinity<Real>() : Real(0));
      read<Stored, HELD>(dout + n * width, start, width, dy, Real(0));
      UNROLL for (int e = 0; e < N; e++)
        if (LOGARITHM && y[e] == -infinity<Real>()) dy[e] = 0;
    };
    Real total = 0;
    for (Index<HELD> start = 0; start < past; start += step) {
      get(start);
      UNROLL for (int e = 0; e < N; e++) total += LOGARITHM ? dy[e] : y[e] * dy[e];
    }
    total = sum_of(total, turn);
    for (Index<HELD> start = 0; start < past; start += step) {
      if (!held) get(start);
      UNROLL for (int e = 0; e < N; e++)
        dy[e] = LOGARITHM ? dy[e] - exponential(y[e]) * total : y[e] * (dy[e] - total);
      write<Stored, HELD>(dx + n * width, start, width, dy);
    }
    if (HELD) break;
  }
}

#define FORWARD(name, threads, N, LOGARITHM, HELD)                                                                     \
  KERNEL(threads) name(Global<const Stored> x, Global<const unsigned char> mask, int64 mask_apart, Global<Stored> out, \
                       int64 rows, int64 width) {                                                                      \
    normalize<N, LOGARITHM, HELD>(x, mask, mask_apart, out, rows, width);                                              \
  }                                                                                                                    \
  EXPORT(name)
FORWARD(softmax_forward, MOST_THREADS<Stored>, COUNT<Stored>, false, false)
FORWARD(softmax_forward_held, 1024, OF_ONE<Stored>, false, true)
FORWARD(log_softmax_forward, MOST_THREADS<Stored>, COUNT<Stored>, true, false)
FORWARD(log_softmax_forward_held, 1024, OF_ONE<Stored>, true, true)
#undef FORWARD

#define BACKWARD(name, threads, N, LOGARITHM, HELD)                                                                \
  KERNEL(threads) name(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int64 rows,         \
                       int64 width) {                                                                              \
    differentiate<N, LOGARITHM, HELD>(dout, out, dx, rows, width);                                                 \
  }                                                                                                                \
  EXPORT(name)
BACKWARD(softmax_backward, MOST_THREADS<Stored>, COUNT<Stored>, false, false)
BACKWARD(softmax_backward_held, 1024, OF_TWO<Stored>, false, true)
BACKWARD(log_softmax_backward, MOST_THREADS<Stored>, COUNT<Stored>, true, false)
BACKWARD(log_softmax_backward_held, 1024, OF_TWO<Stored>, true, true)
#undef BACKWARD
