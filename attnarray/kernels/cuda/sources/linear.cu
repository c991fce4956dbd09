// The state of linear attention from chunk to chunk. Reference: attention/linear/chunks.py, `scan_chunks`.
// Parallel over the key heads of all batches and over 16 value columns; a block goes through the chunks. A thread has one column
// and every 16th row, of which it computes four at once. Shared: the state (depth x 16) and what a chunk writes (size x 16).
#include "primitives.cuh"

using Real = ComputedIn<Stored>::type;

constexpr int COLUMNS = 16, ROWS = 16, EACH = 4;

inline Real number(Global<const Stored> x, int64 at) { return Real(wide(x[at])); }

inline void put(Global<Stored> x, int64 at, Real value) {
  Stored rounded;
  narrow(value, rounded);
  x[at] = rounded;
}

#define EACH_ROW(first, past) for (int64 row = (first); row < (past); row += ROWS)

KERNEL(256) scan_chunks(Global<const Stored> initial, Global<const Stored> whole, Global<const Stored> x,
                        Global<const Stored> p, Global<const Stored> q, Global<const Stored> r, Global<Stored> last,
                        Global<Stored> states, Global<Stored> updates, int64 heads, int64 chunks, int64 size,
                        int64 depth, int64 width, int64 decays, int64 reverse) {
  Shared<Real> S = shared<Real>(0), u = shared<Real>(int(depth * COLUMNS * sizeof(Real)));
  const int across = threadIdx.x, down = threadIdx.y;
  for (int64 head = blockIdx.x; head < heads; head += gridDim.x)
    for (int64 left = int64(blockIdx.y) * COLUMNS; left < width; left += int64(gridDim.y) * COLUMNS) {
      const int64 column = left + across;
      const bool there = column < width;
      EACH_ROW(down, depth)
        S[row * COLUMNS + across] = there ? number(initial, (head * depth + row) * width + column) : Real(0);
      sync_threads();
      for (int64 step = 0; step < chunks; step++) {
        const int64 at = head * chunks + (reverse ? chunks - 1 - step : step);
        if (there)
          EACH_ROW(down, depth) put(states, (at * depth + row) * width + column, S[row * COLUMNS + across]);
        for (int64 first = down; first < size; first += ROWS * EACH) {
          Real sums[EACH];
          UNROLL for (int n = 0; n < EACH; n++) {
            const int64 row = first + n * ROWS;
            sums[n] = there && row < size ? number(x, (at * size + row) * width + column) : Real(0);
          }
          if (p)
            for (int64 d = 0; d < depth; d++) {
              const Real state = S[d * COLUMNS + across];
              UNROLL for (int n = 0; n < EACH; n++) {
                const int64 row = first + n * ROWS;
                if (row < size) sums[n] += number(p, (at * size + row) * depth + d) * state;
              }
            }
          UNROLL for (int n = 0; n < EACH; n++) {
            const int64 row = first + n * ROWS;
            if (row < size) {
              u[row * COLUMNS + across] = sums[n];
              if (p && there) put(updates, (at * size + row) * width + column, sums[n]);
            }
          }
        }
        sync_threads();
        for (int64 first = down; first < depth; first += ROWS * EACH) {
          Real sums[EACH];
          UNROLL for (int n = 0; n < EACH; n++) {
            const int64 row = first + n * ROWS;
            sums[n] = 0;
            if (row < depth) {
              sums[n] = S[row * COLUMNS + across];
              if (decays) sums[n] *= number(whole, at * decays + (decays == 1 ? 0 : row));
              if (r && there) sums[n] += number(r, (at * depth + row) * width + column);
            }
          }
          if (q)
            for (int64 t = 0; t < size; t++) {
              const Real written = u[t * COLUMNS + across];
              UNROLL for (int n = 0; n < EACH; n++) {
                const int64 row = first + n * ROWS;
                if (row < depth) sums[n] += number(q, (at * size + t) * depth + row) * written;
              }
            }
          UNROLL for (int n = 0; n < EACH; n++) {
            const int64 row = first + n * ROWS;
            if (row < depth) S[row * COLUMNS + across] = sums[n];
          }
        }
        sync_threads();
      }
      if (there)
        EACH_ROW(down, depth) put(last, (head * depth + row) * width + column, S[row * COLUMNS + across]);
    }
}
EXPORT(scan_chunks)
#undef EACH_ROW
