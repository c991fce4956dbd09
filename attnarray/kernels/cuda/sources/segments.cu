// Softmax over segments, forward and backward, and the sums of segments. References: ops/segments.py, ops/embedding.py. The
// entries come in the order of their segments (`order`), those of segment s from starts[s] to starts[s + 1], so each sum is
// computed by one block and has the same bits in every run. Softmax: a warp per batch, segment and column. Sums: a block of 32
// columns and 8 strips of entries per batch and segment; shared: 8 x 32 numbers.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

// No division of 64-bit integers: it would be a call, around which registers are spilled.
#define EACH_SEGMENT                                                             \
  for (int64 batch = blockIdx.z; batch < batches; batch += gridDim.z)            \
    for (int64 column = blockIdx.y; column < columns; column += gridDim.y)       \
      for (int64 n = first_row(); n < count; n += rows_apart())

KERNEL(256) segment_softmax_forward(Global<const Stored> x, Global<const unsigned char> mask, Global<const int64> order,
                                    Global<const int64> starts, Global<Stored> out, int64 batches, int64 count,
                                    int64 entries, int64 columns) {
  EACH_SEGMENT {
    const int64 base = batch * entries * columns + column, past = starts[n + 1];
    auto logit = [&](int64 i) -> Real {
      const int64 at = base + order[i] * columns;
      return mask && !mask[at] ? -infinity<Real>() : Real(wide(x[at]));
    };
    Real segment_max = -infinity<Real>(), total = 0;
    for (int64 i = starts[n] + threadIdx.x; i < past; i += 32) segment_max = larger(segment_max, logit(i));
    const Real shift = softmax_shift(reduce_max(segment_max));
    for (int64 i = starts[n] + threadIdx.x; i < past; i += 32) total += exp(logit(i) - shift);
    total = reduce_sum(total);
    const Real factor = total == 0 ? Real(1) : reciprocal(total);
    for (int64 i = starts[n] + threadIdx.x; i < past; i += 32) {
      Stored rounded;
      narrow(exp(logit(i) - shift) * factor, rounded);
      out[base + order[i] * columns] = rounded;
    }
  }
}
EXPORT(segment_softmax_forward)

KERNEL(256) segment_softmax_backward(Global<const Stored> dout, Global<const Stored> out, Global<const int64> order,
                                     Global<const int64> starts, Global<Stored> dx, int64 batches, int64 count,
                                     int64 entries, int64 columns) {
  EACH_SEGMENT {
    const int64 base = batch * entries * columns + column, past = starts[n + 1];
    Real total = 0;
    for (int64 i = starts[n] + threadIdx.x; i < past; i += 32) {
      const int64 at = base + order[i] * columns;
      const Real y = wide(out[at]);
      if (y != 0) total += y * wide(dout[at]);
    }
    total = reduce_sum(total);
    for (int64 i = starts[n] + threadIdx.x; i < past; i += 32) {
      const int64 at = base + order[i] * columns;
      const Real y = wide(out[at]);
      Stored rounded;
      narrow(y == 0 ? Real(0) : y * (wide(dout[at]) - total), rounded);
      dx[at] = rounded;
    }
  }
}
EXPORT(segment_softmax_backward)

KERNEL(256) sum_segments(Global<const Stored> x, Global<const int64> order, Global<const int64> starts,
                         Global<Stored> out, int64 batches, int64 count, int64 entries, int64 columns) {
  Shared<Real> sums = shared<Real>(0);
  for (int64 batch = blockIdx.z; batch < batches; batch += gridDim.z)
    for (int64 n = blockIdx.x; n < count; n += gridDim.x) {
      const int64 column = int64(blockIdx.y) * 32 + threadIdx.x, past = starts[n + 1];
      Real total = 0;
      if (column < columns)
        for (int64 i = starts[n] + threadIdx.y; i < past; i += 8)
          total += wide(x[(batch * entries + order[i]) * columns + column]);
      sums[threadIdx.y * 32 + threadIdx.x] = total;
      sync_threads();
      if (threadIdx.y == 0 && column < columns) {
        for (int strip = 1; strip < 8; strip++) total += sums[strip * 32 + threadIdx.x];
        Stored rounded;
        narrow(total, rounded);
        out[(batch * count + n) * columns + column] = rounded;
      }
      sync_threads();
    }
}
EXPORT(sum_segments)
#undef EACH_SEGMENT
