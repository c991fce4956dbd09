// The sums of columns: the partial sums of the blocks of another kernel, added in a fixed order.
// Parallel over columns, 32 to a block, and over 32 strips of rows. Shared: 32 x 32 numbers.
#include "rows.cuh"

using Real = ComputedIn<Stored>::type;

KERNEL(1024) column_sums(Global<const Real> x, Global<Stored> out, int64 rows, int64 width) {
  Shared<Real> sums = shared<Real>(0);
  const int64 column = int64(blockIdx.x) * 32 + threadIdx.x;
  Real total = 0;
  if (column < width)
    for (int64 first = threadIdx.y; first < rows; first += 8 * 32)
      UNROLL for (int64 n = first; n < first + 8 * 32; n += 32)
        if (n < rows) total += x[n * width + column];
  sums[threadIdx.y * 32 + threadIdx.x] = total;
  sync_threads();
  if (threadIdx.y || column >= width) return;
  for (int n = 1; n < 32; n++) total += sums[n * 32 + threadIdx.x];
  Stored rounded;
  narrow(total, rounded);
  out[column] = rounded;
}
EXPORT(column_sums)
