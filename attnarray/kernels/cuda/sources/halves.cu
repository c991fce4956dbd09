// float32 as two float16 each, for wgmma products. Parallel over parts of the rows of a batch and head of keys. No shared
// memory but for a number of each warp.
//
// The numbers of a batch and head of keys are divided by a power of 2 that leaves the largest in [2^14, 2^15). The first half
// is a number rounded to float16, the second the rounding error. So numbers down to 2^-17 of the largest keep 22 bits, and
// smaller ones lose what is below 2^-39 of it. NaN and infinities stay.
#include "rows.cuh"

// The distribution of rows of chunks over threads and blocks: a thread has one chunk of some rows.
struct Spread {
  int chunk, first, apart;
  inline Spread(int chunks) {
    const int together = 256 / chunks, row = threadIdx.x / chunks;
    chunk = threadIdx.x % chunks, apart = gridDim.y * together;
    first = row < together ? blockIdx.y * together + row : 1 << 30;  // beyond all rows
  }
};

// The largest finite number of a part: rows of `group` heads of one batch.
KERNEL(256) head_maxima(Global<const Stored> x, int64 batch_apart, int64 head_apart, int64 row_apart,
                             Global<float> maxima, int64 kv_heads, int64 group, int64 rows, int64 width) {
  Shared<float> warp_values = shared<float>(0);
  const int batch = int(blockIdx.x) / int(kv_heads), head = int(blockIdx.x) % int(kv_heads) * int(group);
  const Spread spread(int(width) / 4);
  Global<const Stored> start = x + (batch * batch_apart + head * head_apart);
  float most = 0;
  for (int h = 0; h < int(group); h++)
    for (int row = spread.first; row < rows; row += spread.apart) {
      Stored four[4];
      load16<Stored>(start + (h * head_apart + row * row_apart), spread.chunk * 4, four);
      UNROLL for (int n = 0; n < 4; n++)
        if (fabs(four[n]) <= 3.402823466e38f) most = fmaxf(most, fabs(four[n]));
    }
  UNROLL for (int lanes = 16; lanes; lanes /= 2) most = fmaxf(most, shuffle_xor(most, lanes));
  if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = most;
  sync_threads();
  if (threadIdx.x) return;
  for (int warp = 1; warp < 8; warp++) {
    const float other = warp_values[warp];
    most = fmaxf(most, other);
  }
  maxima[int64(blockIdx.x) * gridDim.y + blockIdx.y] = most;
}
EXPORT(head_maxima)

// Rows of `filled` numbers (a multiple of 8; zeros behind `width`): all their first halves, then all second ones.
KERNEL(256) split_heads(Global<const Stored> x, int64 batch_apart, int64 head_apart, int64 row_apart,
                        Global<const float> maxima, int64 parts, Global<float16> halves, Global<float> units, int64 first_unit,
                        int64 kv_heads, int64 group, int64 rows, int64 width, int64 filled) {
  const int batch = int(blockIdx.x) / int(kv_heads), head = int(blockIdx.x) % int(kv_heads) * int(group);
  float most = 0;
  for (int part = threadIdx.x % 32; part < int(parts); part += 32) {
    const float other = maxima[int64(blockIdx.x) * parts + part];
    most = fmaxf(most, other);
  }
  UNROLL for (int lanes = 16; lanes; lanes /= 2) most = fmaxf(most, shuffle_xor(most, lanes));
  const int exponent = most == 0 ? 14 + 127 : int(float_bits(most) >> 23);  // with 127 added
  // 2^(14 - exponent) and its inverse, both kept normal.
  const int up = exponent < 15 ? 126 : 14 + 127 - exponent;
  const float by = from_bits(uint32(up + 127) << 23), unit = from_bits(uint32(127 - up) << 23);
  if (blockIdx.y == 0 && threadIdx.x == 0) units[first_unit + blockIdx.x] = unit;

  const Spread spread(int(filled) / 8);
  const int column = spread.chunk * 8;
  Global<const Stored> start = x + (batch * batch_apart + head * head_apart);
  for (int h = 0; h < int(group); h++)
    for (int row = spread.first; row < rows; row += spread.apart) {
      Global<const Stored> from = start + (h * head_apart + row * row_apart);
      Stored eight[2][4] = {};
      if (column < width) load16<Stored>(from, column, eight[0]);
      if (column + 4 < width) load16<Stored>(from, column + 4, eight[1]);
      float16 first[8], second[8];
      UNROLL for (int n = 0; n < 8; n++) {
        const float scaled = eight[n / 4][n % 4] * by;
        narrow(scaled, first[n]);
        narrow(scaled - wide(first[n]), second[n]);
      }
      const int64 offset = (((int64(batch) * kv_heads * group + head + h) * rows + row) * 2) * filled + column;
      store16<float16>(halves, offset, first);
      store16<float16>(halves, offset + filled, second);
    }
}
EXPORT(split_heads)
