// Matrix products by wgmma (sm_90a), asynchronous, from shared memory, for warpgroups of four warps.
//
// A warpgroup multiplies 64 rows. Sums are distributed over the lanes of each warp as in matrix.cuh, and so are weights that are
// multiplied from registers. wgmma takes 16-bit numbers. A float32 is given as two float16, its halves, the second the rounding
// error of the first: 22 bits, unless it is far below the largest, see halves.cu. A product of two
// such numbers is three products; the omitted one is 2^-22 of it.
#pragma once
#include "matrix.cuh"

template <class T> struct Multiplied { using type = T; };
template <> struct Multiplied<float> { using type = float16; };

// A matrix in shared memory from byte `start` (a multiple of 1024) on, in panels of 64 columns, each with its rows of 128 bytes
// one after the other; of float32, panels of first halves and then those of second ones. The chunks of a row are swizzled by
// its number.
template <class T, int ROWS, int COLUMNS> struct PanelTile {
  using Number = T;
  using Unit = typename Multiplied<T>::type;
  static constexpr bool IS_SPLIT = sizeof(T) > sizeof(Unit);
  static constexpr int HEIGHT = ROWS, CHUNKS = COLUMNS / NUMBERS<T>, STEPS = COLUMNS / 16, APART = 128;  // bytes from row to row
  static constexpr int PANEL = ROWS * APART, BYTES = ROWS * COLUMNS * sizeof(T);
  static_assert(COLUMNS % 64 == 0 && ROWS % 8 == 0, "whole panels, and whole patterns of chunks");
  uint32 start;

  inline uint32 chunk_address(int row, int chunk) const {
    return start + chunk / 8 * PANEL + row * APART + (((chunk ^ row) & 7) << 4);
  }
  // Descriptor of the rows from `row` (a multiple of 8) on, with the inner dimension along rows, 16 numbers per step; what a
  // step adds.
  inline uint64 rows(int row) const { return describe(start + row * APART, 16, 8 * APART); }
  static inline uint64 along(int step) { return uint64(step / 4 * PANEL + step % 4 * 32) >> 4; }
  // Descriptor of the matrix as a right one, with the inner dimension down its rows, 16 per step; what a step adds.
  inline uint64 itself() const { return describe(start, PANEL, 8 * APART); }
  static inline uint64 down(int step) { return uint64(step * 16 * APART) >> 4; }
  // What second halves add.
  static inline uint64 rest() { return uint64(COLUMNS / 64 * PANEL) >> 4; }
};

// The number of this thread's warpgroup, which the compiler knows to be uniform in the warp.
inline int warpgroup() { return min_over_lanes(threadIdx.x / 128); }

// sums (64 x 8 PARTS) = the rows of `a` from `row` on times the rows of `b`. Asynchronous until wait_products, as all here.
template <class A, class B, int PARTS>
inline void multiply_rows(float (&sums)[PARTS][4], const A& a, int row, const B& b) {
  static_assert(A::STEPS == B::STEPS && B::HEIGHT == 8 * PARTS, "rows of one length, and a sum for each of b");
  const uint64 left = a.rows(row), right = b.rows(0);
  const typename A::Unit unit = {};
  if constexpr (A::IS_SPLIT) {
    UNROLL for (int step = 0; step < A::STEPS; step++) {
      multiply_group(sums, left + A::along(step) + A::rest(), right + B::along(step), step > 0, unit);
      multiply_group(sums, left + A::along(step), right + B::along(step) + B::rest(), true, unit);
    }
  }
  UNROLL for (int step = 0; step < A::STEPS; step++)
    multiply_group(sums, left + A::along(step), right + B::along(step), A::IS_SPLIT || step > 0, unit);
}

// Weights of 64 rows by 16 STEPS in registers, for products from there.
template <class T, int STEPS> struct Weights {
  uint32 v[STEPS][4];
  inline void pack(const float (&numbers)[2 * STEPS][4]) {
    UNROLL for (int step = 0; step < STEPS; step++)
      UNROLL for (int n = 0; n < 4; n++) {
        const float* pair = &numbers[2 * step + n / 2][n % 2 * 2];
        v[step][n] = ::pack(pair[0], pair[1], T());
      }
  }
  inline void hold() { ::hold(v); }
};
template <int STEPS> struct Weights<float, STEPS> {
  uint32 v[STEPS][4], rest[STEPS][4];
  inline void pack(const float (&numbers)[2 * STEPS][4]) {
    UNROLL for (int step = 0; step < STEPS; step++)
      UNROLL for (int n = 0; n < 4; n++) {
        const float* pair = &numbers[2 * step + n / 2][n % 2 * 2];
        const uint32 both = ::pack(pair[0], pair[1], float16());
        const float16 low = {(unsigned short)both}, high = {(unsigned short)(both >> 16)};
        v[step][n] = both;
        rest[step][n] = ::pack(pair[0] - wide(low), pair[1] - wide(high), float16());
      }
  }
  inline void hold() { ::hold(v), ::hold(rest); }
};

// sums (64 x 8 PARTS) = weights (64 x 16 STEPS) times the matrix b itself, its columns [64 panel, ...); added to them if `adds`.
template <class T, class B, int PARTS, int STEPS>
inline void multiply_weights(float (&sums)[PARTS][4], const Weights<T, STEPS>& weights, const B& b, bool adds,
                             int panel = 0) {
  static_assert(B::HEIGHT == 16 * STEPS && B::STEPS * 2 >= PARTS, "a weight for each row, columns for the sums");
  const uint64 right = b.itself() + (uint64(panel * B::PANEL) >> 4);
  const typename B::Unit unit = {};
  UNROLL for (int step = 0; step < STEPS; step++) {
    if constexpr (B::IS_SPLIT) {
      multiply_group(sums, weights.rest[step], right + B::down(step), adds || step > 0, unit);
      multiply_group(sums, weights.v[step], right + B::down(step) + B::rest(), true, unit);
    }
    multiply_group(sums, weights.v[step], right + B::down(step), adds || step > 0 || B::IS_SPLIT, unit);
  }
}
