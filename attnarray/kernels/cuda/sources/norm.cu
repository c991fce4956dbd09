// Layer norm and RMS norm of rows, forward and backward. Reference: ops/norm.py. Parallel over rows and within them.
// Memory: as in softmax.cu. The gradients of weight and bias are summed over the rows of a block in shared memory, each sum
// by the one thread that owns its column, then written as one row of partial sums per block: same bits in every run.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

template <bool CENTRED>
inline void normalize(Global<const Stored> x, Global<const Stored> weight, Global<const Stored> bias, Real eps,
                      Global<Stored> out, Global<Real> means, Global<Real> inverses, int64 rows, int64 width) {
  Real v[COUNT<Stored>];
  const Real size = width ? Real(width) : Real(1);
  const bool held = width <= span<Stored>();
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    Real mean = 0;
    if (CENTRED) {
      for (int64 start = 0; start < width; start += span<Stored>()) {
        read<Stored>(x + n * width, start, width, v, Real(0));
        UNROLL for (int e = 0; e < COUNT<Stored>; e++) mean += v[e];
      }
      mean = sum_of(mean) / size;
    }
    Real squares = 0;
    for (int64 start = 0; start < width; start += span<Stored>()) {
      if (!held || !CENTRED) read<Stored>(x + n * width, start, width, v, Real(0));
      each<Stored>(start, width, [&](int e, int64) { squares += (v[e] - mean) * (v[e] - mean); });
    }
    const Real inverse = Real(1) / sqrt(sum_of(squares) / size + eps);
    for (int64 start = 0; start < width; start += span<Stored>()) {
      if (!held) read<Stored>(x + n * width, start, width, v, Real(0));
      each<Stored>(start, width, [&](int e, int64 i) {
        v[e] = (v[e] - mean) * inverse;
        if (weight) v[e] *= wide(weight[i]);
        if (bias) v[e] += wide(bias[i]);
      });
      write<Stored>(out + n * width, start, width, v);
    }
    if (threadIdx.x == 0) {
      inverses[n] = inverse;
      if (CENTRED) means[n] = mean;
    }
  }
}

// With normal = (x - mean) / deviation and g = weight dy: dx = (g - mean(g) - normal mean(g normal)) / deviation.
template <bool CENTRED>
inline void differentiate(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means,
                          Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx,
                          Global<Real> dweights, Global<Real> dbiases, int64 rows, int64 width, int64 sums) {
  Real g[COUNT<Stored>], normal[COUNT<Stored>];
  const bool held = width <= span<Stored>();
  Shared<Real> weights = shared<Real>(int(sums)) + threadIdx.y * width;  // one row per row that a block works on at once
  Shared<Real> biases = shared<Real>(int(sums)) + ((dweights ? blockDim.y : 0) + threadIdx.y) * width;
  for (int64 start = 0; start < width; start += span<Stored>())
    each<Stored>(start, width, [&](int, int64 i) {
      if (dweights) weights[i] = Real(0);
      if (dbiases) biases[i] = Real(0);
    });
  for (int64 n = first_row(); n < rows; n += rows_apart()) {
    const Real mean = CENTRED ? Real(means[n]) : Real(0), inverse = inverses[n];
    auto get = [&](int64 start, bool first) {
      read<Stored>(dout + n * width, start, width, g, Real(0));
      read<Stored>(x + n * width, start, width, normal, mean);
      each<Stored>(start, width, [&](int e, int64 i) {
        normal[e] = (normal[e] - mean) * inverse;
        if (first && dweights) weights[i] += g[e] * normal[e];
        if (first && dbiases) biases[i] += g[e];
        if (weight) g[e] *= wide(weight[i]);
      });
    };
    Real total = 0, product = 0;
    for (int64 start = 0; start < width; start += span<Stored>()) {
      get(start, true);
      each<Stored>(start, width, [&](int e, int64) {
        total += g[e];
        product += g[e] * normal[e];
      });
    }
    total = CENTRED ? sum_of(total) / Real(width) : Real(0);
    product = sum_of(product) / Real(width);
    for (int64 start = 0; start < width; start += span<Stored>()) {
      if (!held) get(start, false);
      UNROLL for (int e = 0; e < COUNT<Stored>; e++) g[e] = (g[e] - total - normal[e] * product) * inverse;
      write<Stored>(dx + n * width, start, width, g);
    }
  }
  sync_threads();
  const int64 threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int64 i = thread; i < width; i += threads) {
    Real weight_sum = 0, bias_sum = 0;
    for (int64 row = 0; row < blockDim.y; row++) {
      if (dweights) weight_sum += shared<Real>(int(sums))[row * width + i];
      if (dbiases) bias_sum += shared<Real>(int(sums))[((dweights ? blockDim.y : 0) + row) * width + i];
    }
    if (dweights) dweights[int64(blockIdx.x) * width + i] = weight_sum;
    if (dbiases) dbiases[int64(blockIdx.x) * width + i] = bias_sum;
  }
}

KERNEL(512) layer_norm_forward(Global<const Stored> x, Global<const Stored> weight, Global<const Stored> bias, Real eps,
                                Global<Stored> out, Global<Real> means, Global<Real> inverses, int64 rows,
                                int64 width) {
  normalize<true>(x, weight, bias, eps, out, means, inverses, rows, width);
}
EXPORT(layer_norm_forward)

KERNEL(512) rms_norm_forward(Global<const Stored> x, Global<const Stored> weight, Real eps, Global<Stored> out,
                              Global<Real> inverses, int64 rows, int64 width) {
  normalize<false>(x, weight, nullptr, eps, out, nullptr, inverses, rows, width);
}
EXPORT(rms_norm_forward)

KERNEL(512) layer_norm_backward(Global<const Stored> dout, Global<const Stored> x, Global<const Real> means,
                                 Global<const Real> inverses, Global<const Stored> weight, Global<Stored> dx,
                                 Global<Real> dweights, Global<Real> dbiases, int64 rows, int64 width, int64 sums) {
  differentiate<true>(dout, x, means, inverses, weight, dx, dweights, dbiases, rows, width, sums);
}
EXPORT(layer_norm_backward)

KERNEL(512) rms_norm_backward(Global<const Stored> dout, Global<const Stored> x, Global<const Real> inverses,
                               Global<const Stored> weight, Global<Stored> dx, Global<Real> dweights, int64 rows,
                               int64 width, int64 sums) {
  differentiate<false>(dout, x, nullptr, inverses, weight, dx, dweights, nullptr, rows, width, sums);
}
EXPORT(rms_norm_backward)
