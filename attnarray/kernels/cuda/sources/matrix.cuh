// Matrix products on tensor cores (mma): tiles in shared memory, fragments in the registers of a warp.
//
// A warp multiplies 16 rows by 8 columns, summing along STEP numbers (32 bytes) at a time: `Left` is a fragment of the left
// matrix, `Right` one of the right matrix, float[4] one of the sums. Lane l holds, of the sums, columns 2 (l % 4) and the next
// of row l / 4, then of row l / 4 + 8.
//
// A float32 is taken as the sum of two numbers of 11 bits, and a product as three products of these; the omitted one is 2^-22
// of it. As tensor cores round sums toward zero, which adds up, sums of float32 are kept short: small products have sums of
// their own, and threads add the sums of each tile (Ootomo and Yokota, 2022).
#pragma once
#include "primitives.cuh"

template <class T> constexpr int STEP = 32 / sizeof(T);
template <class T> constexpr int NUMBERS = 16 / sizeof(T);  // of the 16 bytes that are copied at once

template <class T> struct Left { uint32 v[4]; };
template <class T> struct Right { uint32 v[2]; };
template <> struct Left<float> { uint32 v[4], rest[4]; };
template <> struct Right<float> { uint32 v[2], rest[2]; };

template <class T> inline void multiply(float (&d)[4], const Left<T>& a, const Right<T>& b) {
  multiply_add(d, a.v, b.v, T());
}
inline void multiply_rest(float (&d)[4], const Left<float>& a, const Right<float>& b) {
  multiply_add_tf32(d, a.rest, b.v);
  multiply_add_tf32(d, a.v, b.rest);
}
inline void multiply(float (&d)[4], const Left<float>& a, const Right<float>& b) {
  multiply_rest(d, a, b);
  multiply_add_tf32(d, a.v, b.v);
}

// Store loaded registers in fragments; float32 numbers are split.
template <class T> inline void put(Left<T>& a, int n, uint32 bits) { a.v[n] = bits; }
template <class T> inline void put(Right<T>& b, int n, uint32 bits) { b.v[n] = bits; }
inline void split(float x, uint32& v, uint32& rest) {
  v = round_tf32(x);
  rest = round_tf32(x - from_bits(v));
}
inline void put(Left<float>& a, int n, uint32 bits) { split(from_bits(bits), a.v[n], a.rest[n]); }
inline void put(Right<float>& b, int n, uint32 bits) { split(from_bits(bits), b.v[n], b.rest[n]); }

// Sums as a left fragment: their columns [step STEP, ...) are the inner dimension of the next product.
template <class T> inline void as_left(Left<T>& a, const float (*sums)[4], int step) {
  UNROLL for (int n = 0; n < 4; n++) {
    const float* pair = &sums[2 * step + n / 2][n % 2 * 2];
    a.v[n] = pack(pair[0], pair[1], T());
  }
}
// Here a fragment's columns are taken in another order, the same as by load_transposed of float: 0, 2, 4, 6, 1, 3, 5, 7.
inline void as_left(Left<float>& a, const float (*sums)[4], int step) {
  UNROLL for (int n = 0; n < 4; n++) split(sums[step][n % 2 * 2 + n / 2], a.v[n], a.rest[n]);
}

// ROWS x COLUMNS numbers in shared memory from byte `start` (a multiple of 128) on. The chunks of a row are swizzled by
// its number, so that eight rows at one column, which load_matrices reads at once, are in different banks: in groups of as many
// chunks as divide a row, at most eight, which cover all banks.
template <class T, int ROWS, int COLUMNS> struct Tile {
  using Number = T;
  static constexpr int HEIGHT = ROWS, CHUNKS = COLUMNS / NUMBERS<T>, ROW = COLUMNS * sizeof(T), APART = ROW, BYTES = ROWS * ROW;
  static constexpr int GROUP = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2, SHIFT = GROUP == 8 ? 0 : GROUP == 4 ? 1 : 2;
  static_assert(CHUNKS % GROUP == 0, "a row has whole groups of chunks");
  uint32 start;

  inline uint32 chunk_address(int row, int chunk) const {
    return start + row * ROW + ((chunk ^ (row >> SHIFT & (GROUP - 1))) << 4);
  }
  // The address `chunks` chunks (an even number) after an address in chunk 0 or 1 of its row.
  static inline uint32 along(uint32 address, int chunks) {
    return (address ^ (chunks % GROUP << 4)) + chunks / GROUP * (16 * GROUP);
  }

  inline uint32 element_address(int row, int column) const {
    return chunk_address(row, column / NUMBERS<T>) + column % NUMBERS<T> * sizeof(T);
  }

  // The addresses from which this lane reads fragments: of the rows [row, row + 16) as a left matrix; of rows as the columns of
  // a right one.
  inline uint32 left(int row) const { return chunk_address(row + threadIdx.x % 16, threadIdx.x % 32 / 16); }
  inline uint32 right() const { return chunk_address(threadIdx.x % 8 + threadIdx.x % 32 / 16 * 8, threadIdx.x / 8 % 2); }

  // The left fragment of numbers [step STEP, ...) of 16 rows.
  static inline void load_left(Left<T>& a, uint32 lane, int step) {
    uint32 four[4];
    load_matrices(four, along(lane, 2 * step));
    UNROLL for (int n = 0; n < 4; n++) put(a, n, four[n]);
  }
  // Two right fragments: their columns are the rows [16 pair, ...), summed along numbers [step STEP, ...).
  static inline void load_right(Right<T> (&b)[2], uint32 lane, int step, int pair) {
    uint32 four[4];
    load_matrices(four, along(lane, 2 * step) + pair * 16 * ROW);
    UNROLL for (int n = 0; n < 4; n++) put(b[n / 2], n % 2, four[n]);
  }
};

// Copy `rows` rows of `columns` numbers from global memory into a tile; zeros beyond. Called by all
// threads.
template <int THREADS, class TILE>
inline void fill(const TILE& tile, Global<const typename TILE::Number> from, int64 apart, int rows, int columns) {
  using T = typename TILE::Number;
  constexpr int CHUNKS = TILE::CHUNKS, TOGETHER = THREADS % CHUNKS ? 1 : THREADS / CHUNKS;  // rows at a time
  if constexpr (TOGETHER > 1 && TILE::HEIGHT % TOGETHER == 0) {  // a thread copies a column of chunks
    const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    const int present = chunk * NUMBERS<T> < columns ? rows - first : 0;
    const uint32 start = tile.chunk_address(first, chunk);
    Global<const T> next = from + (first * apart + chunk * NUMBERS<T>);
    UNROLL for (int n = 0; n < TILE::HEIGHT / TOGETHER; n++) {
      const int on = n * TOGETHER;  // the swizzle repeats every eight rows
      const uint32 to = TOGETHER % 8 ? tile.chunk_address(first + on, chunk) : start + on * TILE::APART;
      copy_async<T>(to, next, on < present);
      next = next + TOGETHER * apart;  // incremented, so that registers need not hold all addresses
    }
  } else {
    UNROLL for (int i = threadIdx.x; i < TILE::HEIGHT * CHUNKS; i += THREADS) {
      const int row = i / CHUNKS, chunk = i % CHUNKS;
      const bool is_there = row < rows && chunk * NUMBERS<T> < columns;
      copy_async<T>(tile.chunk_address(row, chunk), from + (row * apart + chunk * NUMBERS<T>), is_there);
    }
  }
}

// The addresses from which this lane reads fragments of a tile as a right matrix, not transposed.
template <class T> struct Transposed { uint32 lane; };
template <> struct Transposed<float> { uint32 even, odd; };

template <class T, int ROWS, int COLUMNS> inline Transposed<T> transposed(const Tile<T, ROWS, COLUMNS>& tile) {
  return {tile.left(0)};
}
template <int ROWS, int COLUMNS> inline Transposed<float> transposed(const Tile<float, ROWS, COLUMNS>& tile) {
  const int row = threadIdx.x % 4 * 2, column = threadIdx.x % 32 / 4;
  return {tile.chunk_address(row, column / 4) + column % 4 * 4, tile.chunk_address(row + 1, column / 4) + column % 4 * 4};
}

// Two right fragments: rows [step STEP, ...) by columns [16 pair, ...).
template <class TILE, class T> inline void load_transposed(Right<T> (&b)[2], const Transposed<T>& from, int step, int pair) {
  uint32 four[4];
  load_matrices_transposed(four, TILE::along(from.lane, 2 * pair) + step * 16 * TILE::ROW);
  UNROLL for (int n = 0; n < 4; n++) put(b[n / 2], n % 2, four[n]);
}
template <class TILE> inline void load_transposed(Right<float> (&b)[2], const Transposed<float>& from, int step, int pair) {
  UNROLL for (int n = 0; n < 2; n++) {
    const int rows = step * 8 * TILE::ROW, chunks = 4 * pair + 2 * n;
    put(b[n], 0, float_bits(read_shared(TILE::along(from.even, chunks) + rows)));
    put(b[n], 1, float_bits(read_shared(TILE::along(from.odd, chunks) + rows)));
  }
}

inline void add(float (&sums)[4], const float (&more)[4]) {
  UNROLL for (int n = 0; n < 4; n++) sums[n] += more[n];
}

// The two numbers of 16 bits that a register holds.
template <class T> inline void unpack(uint32 bits, float (&pair)[2]) {
  pair[0] = wide(T{static_cast<unsigned short>(bits)}), pair[1] = wide(T{static_cast<unsigned short>(bits >> 16)});
}

// 16 x 16 sums times a factor, plus numbers that load_matrices has distributed over lanes like sums.
template <class T> inline void scale_and_add(float (*sums)[4], float factor, const uint32 (&four)[4]) {
  UNROLL for (int n = 0; n < 4; n++) {
    float more[2];
    unpack<T>(four[n], more);
    UNROLL for (int i = 0; i < 2; i++) {
      float& x = sums[n / 2][n % 2 * 2 + i];
      x = x * factor + more[i];
    }
  }
}
// sums (16 x 8 PARTS) times a factor, plus the numbers of a tile: its rows from `row` and its columns from `column` on.
template <class T, int ROWS, int COLUMNS, int PARTS>
inline void scale_and_add(float (&sums)[PARTS][4], float factor, const Tile<T, ROWS, COLUMNS>& tile, int row, int column) {
  const uint32 lane = tile.left(row);
  UNROLL for (int step = 0; step < PARTS / 2; step++) {
    uint32 four[4];
    load_matrices(four, tile.along(lane, column / NUMBERS<T> + 2 * step));
    scale_and_add<T>(&sums[2 * step], factor, four);
  }
}
template <int ROWS, int COLUMNS, int PARTS>
inline void scale_and_add(float (&sums)[PARTS][4], float factor, const Tile<float, ROWS, COLUMNS>& tile, int row, int column) {
  const int lane_column = column + threadIdx.x % 4 * 2;
  UNROLL for (int half = 0; half < 2; half++)
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        float& x = sums[part][2 * half + n];
        x = x * factor + read_shared(tile.element_address(row + half * 8 + threadIdx.x % 32 / 4, lane_column + 8 * part + n));
      }
}
// The same for the transposed tile.
template <class T, int ROWS, int COLUMNS, int PARTS>
inline void scale_and_add_transposed(float (&sums)[PARTS][4], float factor, const Tile<T, ROWS, COLUMNS>& tile, int column) {
  const uint32 lane = tile.chunk_address(threadIdx.x % 8 + threadIdx.x % 32 / 16 * 8, column / NUMBERS<T> + threadIdx.x / 8 % 2);
  UNROLL for (int step = 0; step < PARTS / 2; step++) {
    uint32 four[4];
    load_matrices_transposed(four, lane + step * 16 * tile.ROW);
    scale_and_add<T>(&sums[2 * step], factor, four);
  }
}
template <int ROWS, int COLUMNS, int PARTS>
inline void scale_and_add_transposed(float (&sums)[PARTS][4], float factor, const Tile<float, ROWS, COLUMNS>& tile, int column) {
  UNROLL for (int half = 0; half < 2; half++)
    UNROLL for (int part = 0; part < PARTS; part++)
      UNROLL for (int n = 0; n < 2; n++) {
        float& x = sums[part][2 * half + n];
        const int row = 8 * part + threadIdx.x % 4 * 2 + n;
        x = x * factor + read_shared(tile.element_address(row, column + half * 8 + threadIdx.x % 32 / 4));
      }
}

// sums[panel] (16 x 8 PARTS) += the rows of a tile at left[panel] times the rows of another one.
template <class T, class A, class B, int P, int PARTS>
inline void add_rows_times_rows(float (&sums)[P][PARTS][4], const uint32 (&left)[P], uint32 right) {
  static_assert(A::ROW == B::ROW, "rows of one length");
  constexpr bool IS_SPLIT = sizeof(T) == 4;
  float rest[IS_SPLIT ? P : 1][IS_SPLIT ? PARTS : 1][4] = {};
  UNROLL for (int step = 0; step < A::ROW / 32; step++) {
    Left<T> a[P];
    UNROLL for (int panel = 0; panel < P; panel++) A::load_left(a[panel], left[panel], step);
    UNROLL for (int pair = 0; pair < PARTS / 2; pair++) {
      Right<T> b[2];
      B::load_right(b, right, step, pair);
      UNROLL for (int panel = 0; panel < P; panel++)
        UNROLL for (int n = 0; n < 2; n++) {
          float(&sum)[4] = sums[panel][2 * pair + n];
          if constexpr (IS_SPLIT) {
            multiply_rest(rest[panel][2 * pair + n], a[panel], b[n]);
            multiply_add_tf32(sum, a[panel].v, b[n].v);
          } else {
            multiply(sum, a[panel], b[n]);
          }
        }
    }
  }
  if constexpr (IS_SPLIT)
    UNROLL for (int panel = 0; panel < P; panel++)
      UNROLL for (int part = 0; part < PARTS; part++) add(sums[panel][part], rest[panel][part]);
}

// sums[panel] (16 x 8 PARTS) += weights[panel] (16 x 8 ALONG) times the tile itself, its first 8 PARTS columns.
template <class T, class B, int P, int PARTS, int ALONG>
inline void add_weights_times(float (&sums)[P][PARTS][4], const float (&weights)[P][ALONG][4],
                              const Transposed<T>& right) {
  UNROLL for (int step = 0; step < ALONG / 2; step++) {
    Left<T> a[P];
    UNROLL for (int panel = 0; panel < P; panel++) as_left(a[panel], weights[panel], step);
    UNROLL for (int pair = 0; pair < PARTS / 2; pair++) {
      Right<T> b[2];
      load_transposed<B>(b, right, step, pair);
      UNROLL for (int panel = 0; panel < P; panel++)
        UNROLL for (int n = 0; n < 2; n++) multiply(sums[panel][2 * pair + n], a[panel], b[n]);
    }
  }
}
// For float32 a few steps have separate sums, 16 columns at a time.
template <class T, class B, int P, int PARTS, int ALONG>
inline void add_weights_times(float (&sums)[P][PARTS][4], const float (&weights)[P][ALONG][4],
                              const Transposed<float>& right) {
  constexpr int TOGETHER = ALONG < 4 ? ALONG : 4;  // steps
  UNROLL for (int first = 0; first < ALONG; first += TOGETHER) {
    Left<float> a[P][TOGETHER];
    UNROLL for (int panel = 0; panel < P; panel++)
      UNROLL for (int step = 0; step < TOGETHER; step++) as_left(a[panel][step], weights[panel], first + step);
    UNROLL for (int pair = 0; pair < PARTS / 2; pair++) {
      float few[P][2][4] = {};
      UNROLL for (int step = 0; step < TOGETHER; step++) {
        Right<float> b[2];
        load_transposed<B>(b, right, first + step, pair);
        UNROLL for (int panel = 0; panel < P; panel++)
          UNROLL for (int n = 0; n < 2; n++) multiply(few[panel][n], a[panel][step], b[n]);
      }
      UNROLL for (int panel = 0; panel < P; panel++)
        UNROLL for (int n = 0; n < 2; n++) add(sums[panel][2 * pair + n], few[panel][n]);
    }
  }
}
