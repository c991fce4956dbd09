// float32 numbers as 16-bit ones, for matrix products that take these: see kernels/cuda/products.py.
// Parallel over eight numbers to a thread.
#include "rows.cuh"

KERNEL(256) rounded(Global<const float> x, Global<Stored> out, int64 count) {
  constexpr int EACH = 8;
  const int64 start = (int64(blockIdx.x) * blockDim.x + threadIdx.x) * EACH;
  if (sizeof(Stored) == 2 && is_aligned16(x) && is_aligned16(out) && start + EACH <= count) {
    float numbers[2][4];
    load16<float>(x, start, numbers[0]);
    load16<float>(x, start + 4, numbers[1]);
    Stored chunk[CHUNK<Stored>];
    UNROLL for (int e = 0; e < CHUNK<Stored>; e++) narrow(numbers[e / 4][e % 4], chunk[e]);
    store16<Stored>(out, start, chunk);
  } else {
    for (int64 i = start; i < start + EACH && i < count; i++) {
      Stored number;
      const float wide = x[i];
      narrow(wide, number);
      out[i] = number;
    }
  }
}
EXPORT(rounded)
