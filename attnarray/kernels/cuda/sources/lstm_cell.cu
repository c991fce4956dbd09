// One step of an LSTM after its matrix products, forward and backward. Reference: ops/lstm_cell.py.
// Parallel over the cells: each thread computes whole cells. Shared: none.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

inline Real logistic(Real x) {
  const Real small = exp(-fabs(x));
  return (x >= 0 ? Real(1) : small) / (1 + small);
}

// Gates i, f, g, o of a row are contiguous, `width` numbers each.
KERNEL(256) lstm_cell(Global<const Stored> products, Global<const Stored> inputs, Global<const Stored> c_before,
                      Global<Stored> gates, Global<Stored> h, Global<Stored> c, int64 count, int64 width) {
  for (int64 n = int64(blockIdx.x) * 256 + threadIdx.x; n < count; n += int64(gridDim.x) * 256) {
    const int64 first = n / width * 4 * width + n % width;
    Real sums[4];
    UNROLL for (int k = 0; k < 4; k++) sums[k] = wide(products[first + k * width]) + wide(inputs[first + k * width]);
    const Real i = logistic(sums[0]), f = logistic(sums[1]), g = tanh(sums[2]), o = logistic(sums[3]);
    const Real cell = f * wide(c_before[n]) + i * g;
    const Real results[4] = {i, f, g, o};
    Stored rounded;
    UNROLL for (int k = 0; k < 4; k++) {
      narrow(results[k], rounded);
      gates[first + k * width] = rounded;
    }
    narrow(o * tanh(cell), rounded);
    h[n] = rounded;
    narrow(cell, rounded);
    c[n] = rounded;
  }
}
EXPORT(lstm_cell)

KERNEL(256) lstm_cell_backward(Global<const Stored> dh, Global<const Stored> dc, Global<const Stored> gates,
                               Global<const Stored> c_before, Global<const Stored> c, Global<Stored> dsums,
                               Global<Stored> dc_before, int64 count, int64 width) {
  for (int64 n = int64(blockIdx.x) * 256 + threadIdx.x; n < count; n += int64(gridDim.x) * 256) {
    const int64 first = n / width * 4 * width + n % width;
    const Real i = wide(gates[first]), f = wide(gates[first + width]), g = wide(gates[first + 2 * width]);
    const Real o = wide(gates[first + 3 * width]), tanh_c = tanh(Real(wide(c[n]))), out = wide(dh[n]);
    const Real cell = wide(dc[n]) + out * o * (1 - tanh_c * tanh_c);
    const Real results[4] = {cell * g * i * (1 - i), cell * wide(c_before[n]) * f * (1 - f), cell * i * (1 - g * g),
                             out * tanh_c * o * (1 - o)};
    Stored rounded;
    UNROLL for (int k = 0; k < 4; k++) {
      narrow(results[k], rounded);
      dsums[first + k * width] = rounded;
    }
    narrow(cell * f, rounded);
    dc_before[n] = rounded;
  }
}
EXPORT(lstm_cell_backward)
