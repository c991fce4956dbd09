// Cross-entropy of rows of logits, forward and backward. Reference: ops/loss.py. Parallel over rows and within them.
// Memory: a row of any length is read once, forward and backward. Shared: one number per warp.
// `share` is smoothing / width.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

KERNEL(512) cross_entropy_forward(Global<const Stored> x, Global<const int64> classes, int64 ignored, Real smoothing,
                                   Real share, Global<Real> losses, Global<Real> largests, Global<Real> totals, int64 rows,
                                   int64 width) {
  Real v[COUNT<Stored>];
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const int64 chosen = classes[n];
    if (chosen == ignored) {
      if (threadIdx.x == 0) losses[n] = Real(0), largests[n] = Real(0), totals[n] = Real(width);
      continue;
    }
    Real largest = -infinity<Real>(), total = 0, sum = 0;  // of this thread; the total counts from its own largest
    for (int64 start = 0; start < width; start += span<Stored>()) {
      read<Stored>(x + n * width, start, width, v, -infinity<Real>());
      const Real before = shift_of(largest);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) largest = larger(largest, v[e]);
      const Real shift = shift_of(largest);
      if (start) total *= exp(before - shift);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) total += exp(v[e] - shift);
      if (smoothing != 0) each<Stored>(start, width, [&](int e, int64) { sum += v[e]; });
    }
    const Real shift = shift_of(largest_of(largest));
    total = sum_of(total * exp(shift_of(largest) - shift) * (largest == -infinity<Real>() ? Real(0) : Real(1)));
    total = total == 0 ? Real(1) : total;
    if (smoothing != 0) sum = sum_of(sum) - Real(width) * shift;
    if (threadIdx.x == 0) {
      Real loss = (smoothing - 1) * (wide(x[n * width + chosen]) - shift) + log(total);
      if (smoothing != 0) loss -= share * sum;
      losses[n] = loss, largests[n] = shift, totals[n] = total;
    }
  }
}
EXPORT(cross_entropy_forward)

KERNEL(512) cross_entropy_backward(Global<const Real> g, Global<const Stored> x, Global<const int64> classes,
                                    Global<const Real> largests, Global<const Real> totals, int64 ignored,
                                    Real smoothing, Real share, Global<Stored> dx, int64 rows, int64 width) {
  Real v[COUNT<Stored>];
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const int64 chosen = classes[n];
    const bool kept = chosen != ignored;
    const Real slope = g[n], shift = largests[n], factor = reciprocal(Real(totals[n]));
    for (int64 start = 0; start < width; start += span<Stored>()) {
      read<Stored>(x + n * width, start, width, v, Real(0));
      each<Stored>(start, width, [&](int e, int64 i) {
        const Real p = exp(v[e] - shift) * factor - (i == chosen ? 1 - smoothing : Real(0)) - share;
        v[e] = kept ? p * slope : Real(0);
      });
      write<Stored>(dx + n * width, start, width, v);
    }
  }
}
EXPORT(cross_entropy_backward)
