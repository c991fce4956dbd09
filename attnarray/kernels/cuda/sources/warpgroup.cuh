// Products of matrices by warpgroups, four warps each (sm_90a): the units read shared memory while the threads go on.
//
// A warpgroup multiplies 64 rows. Sums lie over the lanes of each of its warps as in matrix.cuh, and so do weights that are
// multiplied from registers. Numbers have 16 bits.
#pragma once
#include "matrix.cuh"

// A matrix in shared memory from byte `start` (a multiple of 1024) on, in panels of 64 columns, each with its rows of 128 bytes
// one after the other. The chunks of a row change places with its number.
template <class T, int ROWS, int COLUMNS> struct PanelTile {
  using Number = T;
  static constexpr int HEIGHT = ROWS, CHUNKS = COLUMNS / 8, STEPS = COLUMNS / 16, APART = 128;  // bytes from row to row
  static constexpr int PANEL = ROWS * APART, BYTES = ROWS * COLUMNS * 2;
  static_assert(COLUMNS % 64 == 0 && ROWS % 8 == 0, "whole panels, and whole patterns of chunks");
  uint32 start;

  inline uint32 place(int row, int chunk) const {
    return start + chunk / 8 * PANEL + row * 128 + (((chunk ^ row) & 7) << 4);
  }
  // The rows from `row` (a multiple of 8) on, which are summed along 16 numbers at a time; what a step on adds.
  inline uint64 rows(int row) const { return describe(start + row * APART, 16, 8 * APART); }
  static inline uint64 along(int step) { return uint64(step / 4 * PANEL + step % 4 * 32) >> 4; }
  // The matrix itself as a right one, which is summed down 16 rows at a time; what a step on adds.
  inline uint64 itself() const { return describe(start, PANEL, 8 * APART); }
  static inline uint64 down(int step) { return uint64(step * 16 * APART) >> 4; }
};

// The number of this thread's warpgroup, known to be one for a warp.
inline int warpgroup() { return least_of_lanes(threadIdx.x / 128); }

// sums (64 x 8 PARTS) = the rows of `a` from `row` on times the rows of `b`. Under way until wait_products, as all here.
template <class A, class B, int PARTS>
inline void multiply_rows(float (&sums)[PARTS][4], const A& a, int row, const B& b) {
  static_assert(A::STEPS == B::STEPS && B::HEIGHT == 8 * PARTS, "rows of one length, and a sum for each of b");
  const uint64 left = a.rows(row), right = b.rows(0);
  UNROLL for (int step = 0; step < A::STEPS; step++)
    multiply_group(sums, left + A::along(step), right + B::along(step), step > 0, typename A::Number());
}

// sums (64 x 8 PARTS) += weights (64 x 16 STEPS) times the matrix b itself.
template <class B, int PARTS, int STEPS>
inline void add_weights_times(float (&sums)[PARTS][4], const uint32 (&weights)[STEPS][4], const B& b) {
  static_assert(B::HEIGHT == 16 * STEPS && B::CHUNKS == PARTS, "a weight for each row, a sum for each column");
  const uint64 right = b.itself();
  UNROLL for (int step = 0; step < STEPS; step++)
    multiply_group(sums, weights[step], right + B::down(step), typename B::Number());
}

// Numbers as weights of 16 bits, for products from registers.
template <class T, int STEPS> inline void pack_weights(uint32 (&weights)[STEPS][4], const float (&numbers)[2 * STEPS][4]) {
  UNROLL for (int step = 0; step < STEPS; step++)
    UNROLL for (int n = 0; n < 4; n++) {
      const float* pair = &numbers[2 * step + n / 2][n % 2 * 2];
      weights[step][n] = pack(pair[0], pair[1], T());
    }
}
