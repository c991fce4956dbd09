// Cross-entropy of rows of logits, forward and backward. Reference: ops/loss.py. Parallel over rows and within them.
// Memory: a row of any length is read once, forward and backward. Shared: that of `reduce`.
// `share` is smoothing / width. Kernels that are called _held are for aligned rows.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

template <int N, bool WHOLE>
inline void losses_of(Global<const Stored> x, Global<const int64> classes, int64 ignored, Real smoothing, Real share,
                      Global<Real> losses, Global<Real> largests, Global<Real> totals, int64 rows, Index<WHOLE> width) {
  Real v[N];
  const Index<WHOLE> step = span<Stored, N>();
  int turn = 0;
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const int64 chosen = classes[n];
    if (chosen == ignored) {
      if (threadIdx.x == 0) losses[n] = Real(0), largests[n] = Real(0), totals[n] = Real(width);
      if (WHOLE) break;
      continue;
    }
    Real largest = -infinity<Real>(), total = 0, sum = 0;  // of this thread; the total counts from its own largest
    for (Index<WHOLE> start = 0; start < width; start += step) {
      read<Stored, WHOLE>(x + n * width, start, width, v, -infinity<Real>());
      const Real before = shift_of(largest);
      UNROLL for (int e = 0; e < N; e++) largest = larger(largest, v[e]);
      const Real shift = shift_of(largest);
      if (start) total *= exponential(before - shift);
      UNROLL for (int e = 0; e < N; e++) total += exponential(v[e] - shift);
      if (smoothing != 0) each<Stored, N, WHOLE>(start, width, [&](int e, Index<WHOLE>) { sum += v[e]; });
    }
    const Real shift = shift_of(largest_of(largest, turn++));
    total *= exponential(shift_of(largest) - shift) * (largest == -infinity<Real>() ? Real(0) : Real(1));
    Real sums[2] = {total, sum};
    add_up(sums, turn++);
    if (threadIdx.x == 0) {
      total = sums[0] == 0 ? Real(1) : sums[0];
      Real loss = (smoothing - 1) * (wide(x[n * width + chosen]) - shift) + log(total);
      if (smoothing != 0) loss -= share * (sums[1] - Real(width) * shift);
      losses[n] = loss, largests[n] = shift, totals[n] = total;
    }
    if (WHOLE) break;
  }
}

// dx = (softmax - (1 - smoothing) [chosen] - share) g. Whoever wrote the chosen number writes it once more.
template <int N, bool WHOLE>
inline void differentiate(Global<const Real> g, Global<const Stored> x, Global<const int64> classes,
                          Global<const Real> largests, Global<const Real> totals, int64 ignored, Real smoothing,
                          Real share, Global<Stored> dx, int64 rows, Index<WHOLE> width) {
  Real v[N];
  const Index<WHOLE> step = span<Stored, N>();
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const int64 chosen = classes[n];
    const bool kept = chosen != ignored;
    const Real slope = g[n], shift = largests[n], factor = reciprocal(Real(totals[n]));
    Global<const Stored> row = x + n * width;
    for (Index<WHOLE> start = 0; start < width; start += step) {
      if (kept) read<Stored, WHOLE>(row, start, width, v, Real(0));
      UNROLL for (int e = 0; e < N; e++) v[e] = kept ? (exponential(v[e] - shift) * factor - share) * slope : Real(0);
      write<Stored, WHOLE>(dx + n * width, start, width, v);
    }
    if (kept && uint64(chosen) < uint64(width) && (uint32(chosen / CHUNK<Stored>) & (blockDim.x - 1)) == threadIdx.x) {
      const Real p = exponential(wide(row[chosen]) - shift) * factor;
      Stored rounded;
      narrow((p - (1 - smoothing) - share) * slope, rounded);
      dx[n * width + chosen] = rounded;
    }
    if (WHOLE) break;
  }
}

#define FORWARD(name, threads, N, WHOLE)                                                                               \
  KERNEL(threads) name(Global<const Stored> x, Global<const int64> classes, int64 ignored, Real smoothing, Real share, \
                       Global<Real> losses, Global<Real> largests, Global<Real> totals, int64 rows, int64 width) {     \
    losses_of<N, WHOLE>(x, classes, ignored, smoothing, share, losses, largests, totals, rows, width);                 \
  }                                                                                                                    \
  EXPORT(name)
FORWARD(cross_entropy_forward, 512, COUNT<Stored>, false)
FORWARD(cross_entropy_forward_held, 256, OF_ONE<Stored>, true)
#undef FORWARD

#define BACKWARD(name, threads, N, WHOLE)                                                                            \
  KERNEL(threads) name(Global<const Real> g, Global<const Stored> x, Global<const int64> classes,                    \
                       Global<const Real> largests, Global<const Real> totals, int64 ignored, Real smoothing,        \
                       Real share, Global<Stored> dx, int64 rows, int64 width) {                                     \
    differentiate<N, WHOLE>(g, x, classes, largests, totals, ignored, smoothing, share, dx, rows, width);            \
  }                                                                                                                  \
  EXPORT(name)
BACKWARD(cross_entropy_backward, 512, COUNT<Stored>, false)
BACKWARD(cross_entropy_backward_held, 256, OF_ONE<Stored>, true)
#undef BACKWARD
