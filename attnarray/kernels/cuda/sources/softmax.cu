// Softmax and log-softmax of rows, forward and backward. Reference: ops/softmax.py. Parallel over rows and within them.
// Memory: a row of up to 8 numbers per thread is read once, a longer one once per pass. Shared: one number per warp.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

// The logits of this thread: -inf where the mask hides them.
inline void read_logits(Global<const Stored> row, Global<const unsigned char> mask, int64 start, int64 width,
                        Real (&v)[COUNT<Stored>]) {
  read<Stored>(row, start, width, v, -infinity<Real>());
  if (mask) each<Stored>(start, width, [&](int e, int64 i) { if (!mask[i]) v[e] = -infinity<Real>(); });
}

template <bool LOGARITHM>
inline void normalize(Global<const Stored> x, Global<const unsigned char> mask, int64 mask_apart, Global<Stored> out,
                      int64 rows, int64 width) {
  Real v[COUNT<Stored>];
  const bool held = width <= span<Stored>();
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    Global<const Stored> row = x + n * width;
    Global<const unsigned char> seen = mask;
    if (mask) seen = mask + n * mask_apart;
    Real largest = -infinity<Real>();
    for (int64 start = 0; start < width; start += span<Stored>()) {
      read_logits(row, seen, start, width, v);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) largest = larger(largest, v[e]);
    }
    const Real shift = shift_of(largest_of(largest));
    Real total = 0;
    for (int64 start = 0; start < width; start += span<Stored>()) {
      if (!held) read_logits(row, seen, start, width, v);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) {
        Real weight = exp(v[e] - shift);
        total += weight;
        v[e] = LOGARITHM ? v[e] - shift : weight;
      }
    }
    total = sum_of(total);
    const Real factor = total == 0 ? Real(1) : reciprocal(total), log_total = total == 0 ? Real(0) : log(total);
    for (int64 start = 0; start < width; start += span<Stored>()) {
      if (!held) {
        read_logits(row, seen, start, width, v);
        UNROLL for (int e = 0; e < COUNT<Stored>; e++) v[e] = LOGARITHM ? v[e] - shift : exp(v[e] - shift);
      }
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) v[e] = LOGARITHM ? v[e] - log_total : v[e] * factor;
      write<Stored>(out + n * width, start, width, v);
    }
  }
}

// dx = y (dy - sum y dy), or for the logarithm dx = dy - e^y sum dy.
template <bool LOGARITHM>
inline void differentiate(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int64 rows,
                          int64 width) {
  Real y[COUNT<Stored>], dy[COUNT<Stored>];
  const bool held = width <= span<Stored>();
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    auto get = [&](int64 start) {
      read<Stored>(out + n * width, start, width, y, LOGARITHM ? -infinity<Real>() : Real(0));
      read<Stored>(dout + n * width, start, width, dy, Real(0));
      UNROLL for (int e = 0; e < COUNT<Stored>; e++)
        if (LOGARITHM && y[e] == -infinity<Real>()) dy[e] = 0;
    };
    Real total = 0;
    for (int64 start = 0; start < width; start += span<Stored>()) {
      get(start);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) total += LOGARITHM ? dy[e] : y[e] * dy[e];
    }
    total = sum_of(total);
    for (int64 start = 0; start < width; start += span<Stored>()) {
      if (!held) get(start);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++)
        dy[e] = LOGARITHM ? dy[e] - exp(y[e]) * total : y[e] * (dy[e] - total);
      write<Stored>(dx + n * width, start, width, dy);
    }
  }
}

KERNEL(512) softmax_forward(Global<const Stored> x, Global<const unsigned char> mask, int64 mask_apart,
                             Global<Stored> out, int64 rows, int64 width) {
  normalize<false>(x, mask, mask_apart, out, rows, width);
}
EXPORT(softmax_forward)

KERNEL(512) log_softmax_forward(Global<const Stored> x, Global<const unsigned char> mask, int64 mask_apart,
                                 Global<Stored> out, int64 rows, int64 width) {
  normalize<true>(x, mask, mask_apart, out, rows, width);
}
EXPORT(log_softmax_forward)

KERNEL(512) softmax_backward(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int64 rows,
                              int64 width) {
  differentiate<false>(dout, out, dx, rows, width);
}
EXPORT(softmax_backward)

KERNEL(512) log_softmax_backward(Global<const Stored> dout, Global<const Stored> out, Global<Stored> dx, int64 rows,
                                  int64 width) {
  differentiate<true>(dout, out, dx, rows, width);
}
EXPORT(log_softmax_backward)
